"""What a trace of a request holds, and whose trace it is."""

import asyncio
import itertools
import json
from collections.abc import Mapping
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from starlette.applications import Starlette

from deployments.http_app import build_http_app
from deployments.http_settings import HttpSettings
from deployments.served_model import ServedModel
from deployments.start_trace import write_start
from deployments.tenant import ApiKey
from engine.errors import InvalidRequest, ReplicaLost
from engine.output import StartTimes
from engine.tokenizer import Tokenizer
from tests.deployments.asgi_client import AsgiCall, call
from tests.deployments.fake_token_source import FakeTokenSource

CHAT = "/v1/chat/completions"
SECRET = "Whisper it"
BODY = {"messages": [{"role": "user", "content": SECRET}], "max_tokens": 4, "temperature": 0.5}
TRACE_ID, CLIENT_SPAN_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


class Traced:
    """An application whose spans stay here."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.source = FakeTokenSource(tokenizer)
        self.source.start_times = StartTimes(queue_s=0.25, prefill_s=0.5)
        self.exporter = InMemorySpanExporter()
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.tracer = provider.get_tracer("pageray")
        model = ServedModel("tiny", max_model_len=512, tokenizer=tokenizer, source=self.source)
        self.app: Starlette = build_http_app([model], HttpSettings(), tracer=self.tracer)

    def post(
        self, body: Mapping[str, Any], headers: Mapping[str, str] | None = None
    ) -> list[ReadableSpan]:
        """Ask; return the span of the request, then those below it as they were written."""
        call(self.app, CHAT, body=json.dumps(body).encode(), headers=dict(headers or {}))
        spans = self.exporter.get_finished_spans()
        return [*spans[-1:], *spans[:-1]]


@pytest.fixture
def traced(tokenizer: Tokenizer) -> Traced:
    return Traced(tokenizer)


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


def seconds(span: ReadableSpan) -> float:
    assert span.start_time is not None
    assert span.end_time is not None
    return (span.end_time - span.start_time) / 1e9


@pytest.mark.parametrize("stream", [False, True])
def test_the_stages_of_a_request_lie_one_after_the_other_below_it(
    traced: Traced, stream: bool
) -> None:
    root, *stages = traced.post({**BODY, "stream": stream})
    assert root.name == "chat tiny"
    assert root.kind is SpanKind.SERVER
    assert root.status.status_code is StatusCode.UNSET
    assert [span.name for span in stages] == ["read", "route", "queue", "prefill", "decode"]
    assert all(span.parent == root.context for span in stages)
    assert all(a.end_time == b.start_time for a, b in itertools.pairwise(stages[1:]))
    assert seconds(stages[2]) == pytest.approx(0.25)
    assert seconds(stages[3]) == pytest.approx(0.5)
    assert attributes(stages[4])["pageray.replica"] == "r1"
    assert attributes(stages[4])["pageray.request_id"].startswith("chatcmpl-")


def test_attributes_have_old_names_and_new(traced: Traced) -> None:
    told = attributes(traced.post(BODY)[0])
    expected = {
        "http.request.method": "POST",
        "http.route": CHAT,
        "http.response.status_code": 200,
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "pageray",
        "gen_ai.system": "pageray",
        "gen_ai.request.model": "tiny",
        "gen_ai.response.model": "tiny",
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.max_tokens": 4,
        "gen_ai.usage.output_tokens": 4,
        "gen_ai.usage.completion_tokens": 4,
        "gen_ai.response.finish_reasons": ("length",),
        "gen_ai.latency.time_in_queue": 0.25,
        "gen_ai.latency.time_in_model_prefill": 0.5,
    }
    assert {name: told[name] for name in expected} == expected
    assert told["gen_ai.usage.input_tokens"] == told["gen_ai.usage.prompt_tokens"] > 0
    assert 0 <= told["gen_ai.latency.time_to_first_token"] <= told["gen_ai.latency.e2e"]


def test_no_span_holds_text_of_a_prompt_or_an_answer(traced: Traced) -> None:
    shown = "".join(span.to_json() for span in traced.post({**BODY, "stop": [SECRET]}))
    assert SECRET not in shown
    assert "Paris" not in shown


def test_a_clients_trace_goes_on(traced: Traced) -> None:
    sampled = {"traceparent": f"00-{TRACE_ID}-{CLIENT_SPAN_ID}-01", "tracestate": "vendor=1"}
    root, *stages = traced.post(BODY, sampled)
    assert root.parent is not None
    assert root.parent.span_id == int(CLIENT_SPAN_ID, 16)
    for span in (root, *stages):
        assert span.context is not None
        assert span.context.trace_id == int(TRACE_ID, 16)
        assert span.context.trace_state.get("vendor") == "1"


def test_a_client_may_say_that_it_is_not_sampled(traced: Traced) -> None:
    assert traced.post(BODY, {"traceparent": f"00-{TRACE_ID}-{CLIENT_SPAN_ID}-00"}) == []


def test_a_traceparent_of_nonsense_begins_a_trace_of_its_own(traced: Traced) -> None:
    root, *_ = traced.post(BODY, {"traceparent": "00-nonsense"})
    assert root.parent is None


def test_a_lost_replica_shows_and_the_next_one_follows(traced: Traced) -> None:
    traced.source.losses = ["the node is gone"]
    root, *stages = traced.post(BODY)
    names = [span.name for span in stages]
    assert names == ["read", "route", "queue", "route", "queue", "prefill", "decode"]
    assert stages[2].status.status_code is StatusCode.ERROR
    assert stages[2].status.description == "the node is gone"
    assert root.status.status_code is StatusCode.UNSET


@pytest.mark.parametrize(
    ("error", "status"),
    [(InvalidRequest("No.", "Ask less."), 400), (ReplicaLost("Gone.", "Again."), 503)],
)
def test_an_error_is_told_with_its_status(traced: Traced, error: Exception, status: int) -> None:
    traced.source.error = error
    root = traced.post(BODY)[0]
    assert attributes(root)["http.response.status_code"] == status
    assert attributes(root)["error.type"] == ("InvalidRequest" if status == 400 else "503")


def test_an_error_in_the_middle_of_a_stream_is_told(traced: Traced) -> None:
    traced.source.error, traced.source.fail_after = ReplicaLost("Gone.", "Again."), 2
    root = traced.post({**BODY, "stream": True})[0]
    assert attributes(root)["http.response.status_code"] == 200
    assert attributes(root)["error.type"] == "ReplicaLost"
    assert root.status.status_code is StatusCode.ERROR


def test_what_does_not_generate_is_not_traced(traced: Traced) -> None:
    for path in ("/health", "/v1/models", "/nowhere"):
        call(traced.app, path)
    assert traced.exporter.get_finished_spans() == ()


def test_a_start_is_traced_phase_by_phase(traced: Traced) -> None:
    phase_times_s = {"find model": 0.5, "load weights": 2.0}
    write_start(traced.tracer, "tiny", phase_times_s, elapsed_s=4.0, ended_ns=10**18)
    *phases, root = traced.exporter.get_finished_spans()
    assert root.name == "start tiny"
    assert [(span.name, round(seconds(span), 6)) for span in phases] == [
        ("start ranks", 1.5),
        ("find model", 0.5),
        ("load weights", 2.0),
    ]
    assert phases[0].start_time == root.start_time
    assert all(a.end_time == b.start_time for a, b in itertools.pairwise(phases))


def test_who_leaves_in_the_middle_of_a_stream_is_told(traced: Traced) -> None:
    traced.source.pause_after = 2

    async def leave() -> None:
        asked = AsgiCall(traced.app, CHAT, {**BODY, "stream": True})
        running = asyncio.create_task(asked.run())
        await traced.source.paused.wait()
        asked.hang_up()
        await running

    asyncio.run(leave())
    root = traced.exporter.get_finished_spans()[-1]
    assert attributes(root)["http.response.status_code"] == 200
    assert attributes(root)["error.type"] == "client_disconnected"


def test_what_nobody_foresaw_is_a_fault_of_ours(traced: Traced) -> None:
    traced.source.error = RuntimeError("secret")
    root = traced.post(BODY)[0]
    assert attributes(root)["http.response.status_code"] == 500
    assert "secret" not in root.to_json()


def test_who_has_no_key_is_not_traced(traced: Traced, tokenizer: Tokenizer) -> None:
    model = ServedModel("tiny", max_model_len=512, tokenizer=tokenizer, source=traced.source)
    settings = HttpSettings(api_keys=(ApiKey.of("sk-one"),))
    traced.app = build_http_app([model], settings, tracer=traced.tracer)
    assert traced.post(BODY, {"traceparent": f"00-{TRACE_ID}-{CLIENT_SPAN_ID}-01"}) == []
    assert traced.post(BODY, {"authorization": "Bearer sk-one"}) != []
