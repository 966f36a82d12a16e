"""Exports the spans of one process over OTLP."""

from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio

from deployments.trace_export import TraceExport

EXPORT_DELAY_MS = 1000
EXPORT_TIMEOUT_S = 5


def open_tracer_provider(export: TraceExport, instance_id: str) -> TracerProvider:
    """Begin to export what this process, named by `instance_id`, traces.

    A thread of its own does it. While the receiver is away, spans are lost and nothing waits.
    `shutdown` sends what is left.
    """
    provider = TracerProvider(
        sampler=ParentBasedTraceIdRatio(export.sampling_ratio),
        resource=Resource.create(
            {"service.name": export.service_name, "service.instance.id": instance_id}
        ),
    )
    exporter = OTLPSpanExporter(endpoint=export.endpoint, timeout=EXPORT_TIMEOUT_S)
    provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=EXPORT_DELAY_MS))
    return provider
