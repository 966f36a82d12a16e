"""Why a request went where it went: over HTTP, at the command line and in the metrics."""

import io

import httpx2
import pytest
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console
from starlette.applications import Starlette

from cluster.decision import Candidate, Decision
from cluster.placement import Reason
from cluster.snapshot import AdmissionSnapshot
from deployments.cli_why import MEANINGS, fetch_why, render_why
from deployments.http_app import build_http_app
from deployments.http_settings import HttpSettings
from deployments.metrics import OwnFamilies
from deployments.peers import Decisions
from deployments.served_model import ServedModel
from engine.errors import PageRayError
from engine.tokenizer import Tokenizer
from tests.deployments.asgi_client import call
from tests.deployments.fake_token_source import FakeTokenSource

DECISION = Decision(
    request_id="chatcmpl-1.0",
    reason=Reason.PREFIX,
    num_prompt_tokens=100,
    num_blocks=8,
    num_considered=2,
    candidates=(
        Candidate("near", 0.25, 5, 50, 3, 0),
        Candidate("far", 0.75, 0, 90, 1, 400),
    ),
)


def test_the_service_tells_what_was_compared(app: Starlette, source: FakeTokenSource) -> None:
    source.known_decisions["chatcmpl-1"] = [DECISION]
    response = call(app, "/status/why/chatcmpl-1")
    assert response.status == 200
    [decision] = response.json()["decisions"]
    assert decision["reason"] == "prefix"
    assert [candidate["replica_id"] for candidate in decision["candidates"]] == ["near", "far"]
    assert decision["candidates"][1]["num_queued_prefill_tokens"] == 400


def test_a_request_that_nobody_knows_is_404(app: Starlette) -> None:
    response = call(app, "/status/why/chatcmpl-2")
    assert response.status == 404
    assert response.json()["error"]["code"] == "request_not_found"


def test_the_command_line_shows_the_chosen_one_first(
    app: Starlette, source: FakeTokenSource
) -> None:
    source.known_decisions["chatcmpl 1"] = [DECISION]

    def handle(request: httpx2.Request) -> httpx2.Response:
        assert request.url.raw_path == b"/status/why/chatcmpl%201"
        answer = call(app, request.url.path)
        return httpx2.Response(answer.status or 0, content=answer.body)

    transport = httpx2.MockTransport(handle)
    with httpx2.Client(base_url="http://there", transport=transport) as client:
        console = Console(width=120, record=True, file=io.StringIO())
        console.print(render_why(fetch_why(client, "chatcmpl 1")))
    text = console.export_text()
    assert MEANINGS["prefix"] in text
    assert text.index("near") < text.index("far")


def test_every_reason_has_a_meaning() -> None:
    assert set(MEANINGS) == set(Reason)


def test_the_server_error_reaches_the_command_line(app: Starlette) -> None:
    def handle(_request: httpx2.Request) -> httpx2.Response:
        answer = call(app, "/status/why/x")
        return httpx2.Response(answer.status or 0, content=answer.body)

    transport = httpx2.MockTransport(handle)
    with (
        httpx2.Client(base_url="http://there", transport=transport) as client,
        pytest.raises(PageRayError, match="No request 'x' was placed from here"),
    ):
        fetch_why(client, "x")


def test_placements_and_what_is_held_back_are_metrics(
    app: Starlette, source: FakeTokenSource
) -> None:
    source.held = AdmissionSnapshot(
        num_held_requests=3,
        num_held_tokens=400,
        num_placements={"cost": 7, "queue": 0},
        num_refused=2,
    )
    families = text_string_to_metric_families(call(app, "/metrics").body.decode())
    values = {
        (sample.name, sample.labels.get("reason")): sample.value
        for family in families
        for sample in family.samples
    }
    assert values["pageray_placements_total", "cost"] == 7
    assert values["pageray_placements_total", "queue"] == 0
    assert values["pageray_held_requests", None] == 3
    assert values["pageray_held_tokens", None] == 400
    assert values["pageray_refused_total", None] == 2
    [model] = call(app, "/status").json()["models"]
    assert model["admission"]["num_held_requests"] == 3


def test_the_session_goes_along_with_the_request(app: Starlette, source: FakeTokenSource) -> None:
    body = {"model": "tiny", "prompt": "x"}
    call(app, "/v1/completions", body, {"x-session-id": "talk"})
    call(app, "/v1/completions", body)
    assert [request.session_id for request in source.requests] == ["talk", ""]


def test_other_frontends_are_asked_for_what_is_not_known_here(
    source: FakeTokenSource, tokenizer: Tokenizer
) -> None:
    class TwoPeers:
        async def decisions(self, request_id: str) -> list[Decisions | BaseException]:
            known = [{"request_id": request_id, "reason": "only"}] if request_id == "theirs" else []
            is_silent = request_id in ("theirs", "silent's")
            return [known, *([TimeoutError("hangs")] if is_silent else [])]

        async def families(self) -> list[OwnFamilies | BaseException]:
            return []

    model = ServedModel("tiny", max_model_len=100, tokenizer=tokenizer, source=source)
    app = build_http_app([model], HttpSettings(), TwoPeers())
    source.known_decisions["ours"] = [DECISION]
    assert call(app, "/status/why/ours").json()["decisions"][0]["reason"] == "prefix"
    assert call(app, "/status/why/theirs").json()["decisions"][0]["reason"] == "only"
    assert call(app, "/status/why/nobodys").status == 404
    unknown = call(app, "/status/why/silent's")
    assert (unknown.status, unknown.json()["error"]["code"]) == (503, "frontend_silent")
    assert unknown.headers["retry-after"] == "1"
