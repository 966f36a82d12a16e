"""A receiver of OpenTelemetry's protocol: OTLP over gRPC, with its own published service."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import (
    TraceServiceServicer,
    add_TraceServiceServicer_to_server,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span


class OtlpReceiver(TraceServiceServicer):
    """Keeps what it is sent."""

    def __init__(self) -> None:
        self._spans: list[tuple[dict[str, str], Span]] = []
        self._lock = threading.Lock()

    def Export(  # noqa: N802  gRPC's name
        self, request: ExportTraceServiceRequest, context: Any
    ) -> ExportTraceServiceResponse:
        with self._lock:
            for spans in request.resource_spans:
                resource = {a.key: a.value.string_value for a in spans.resource.attributes}
                for scope in spans.scope_spans:
                    self._spans += [(resource, span) for span in scope.spans]
        return ExportTraceServiceResponse()

    def spans(self, trace_id: bytes | None = None) -> list[Span]:
        """What has come, of one trace or all, in order of their beginnings."""
        with self._lock:
            found = [span for _, span in self._spans if trace_id in (None, span.trace_id)]
        return sorted(found, key=lambda span: (span.start_time_unix_nano, -span.end_time_unix_nano))

    def instances(self) -> set[str]:
        """Processes that have sent something."""
        with self._lock:
            return {resource["service.instance.id"] for resource, _ in self._spans}


@contextmanager
def otlp_receiver(port: int) -> Iterator[OtlpReceiver]:
    """Listen on every address of this machine."""
    receiver = OtlpReceiver()
    server = grpc.server(ThreadPoolExecutor(2))
    add_TraceServiceServicer_to_server(receiver, server)  # type: ignore[no-untyped-call]
    assert server.add_insecure_port(f"0.0.0.0:{port}") == port
    server.start()
    try:
        yield receiver
    finally:
        server.stop(grace=None).wait()
