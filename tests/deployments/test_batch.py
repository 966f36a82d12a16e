"""A batch against a service on this machine: nothing is lost, nothing is asked twice."""

import asyncio
import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import httpx2
import pytest
from starlette.responses import Response

from deployments.batch import run_batch
from deployments.batch_client import BatchClient, RetryRules
from deployments.batch_input import BatchRequest, read_batch, read_custom_ids
from deployments.batch_output import BatchOutput
from engine.errors import InvalidConfig, PageRayError
from tests.deployments.scripted_service import (
    Hangup,
    ScriptedService,
    completion,
    listening,
    refusal,
)

QUICK = RetryRules(first_wait_s=0.01, longest_wait_s=0.02, max_broken=3, patience_s=5.0)


def line(name: str, **fields: Any) -> dict[str, Any]:
    body = {"prompt": name, "max_tokens": 2}
    values = {"custom_id": name, "method": "POST", "url": "/v1/completions", "body": body}
    return {**values, **fields}


def write(path: Path, *lines: dict[str, Any] | str) -> Path:
    texts = [each if isinstance(each, str) else json.dumps(each) for each in lines]
    path.write_text("\n".join(texts) + "\n")
    return path


def run(path: Path, url: str, rules: RetryRules = QUICK, concurrency: int = 4) -> Path:
    """Run it; return the file of answers."""
    answers = path.with_name("output.jsonl")
    with BatchOutput(answers, read_custom_ids(path)) as output:
        run_batch(
            read_batch(path),
            output,
            lambda _: None,
            url=url,
            api_key="k",
            concurrency=concurrency,
            rules=rules,
        )
    return answers


def read(answers: Path) -> dict[str, dict[str, Any]]:
    """The answers by id, each of which is there once."""
    found = [json.loads(text) for text in answers.read_text().splitlines()]
    by_id = {each["custom_id"]: each for each in found}
    assert len(by_id) == len(found)
    return by_id


def test_every_request_is_answered_in_openais_form(
    service: ScriptedService, url: str, tmp_path: Path
) -> None:
    names = [f"d{i}" for i in range(40)]
    service.delay_s = 0.01
    answers = read(run(write(tmp_path / "input.jsonl", *map(line, names)), url))
    assert answers.keys() == set(names)
    for name, answer in answers.items():
        assert answer["id"].startswith("batch_req_")
        assert answer["error"] is None
        assert answer["response"]["status_code"] == 200
        assert answer["response"]["request_id"] == f"id-{name}"
        assert answer["response"]["body"]["choices"] == [{"text": name}]
    assert len({answer["id"] for answer in answers.values()}) == 40
    assert service.authorization == "Bearer k"
    assert service.most_at_once == 4
    assert len(service.connections) == 4


def test_requests_stand_behind_all_others_unless_they_say_otherwise(
    service: ScriptedService, url: str, tmp_path: Path
) -> None:
    urgent = line("b", body={"prompt": "b", "priority": -3})
    run(write(tmp_path / "input.jsonl", line("a"), urgent), url)
    assert {body["prompt"]: body["priority"] for body in service.bodies} == {"a": 1, "b": -3}


def test_an_own_application_takes_the_requests(build_app: Any, tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "hello"}]
    chat = line("chat", url="/v1/chat/completions", body={"messages": messages})
    wrong = line("wrong", body={"prompt": "x", "max_tokns": 2})
    with listening(build_app()) as url:
        answers = read(run(write(tmp_path / "input.jsonl", chat, line("text"), wrong), url))
    message = answers["chat"]["response"]["body"]["choices"][0]["message"]
    assert "Paris" in message["content"]
    assert answers["text"]["response"]["status_code"] == 200
    assert answers["wrong"]["response"]["status_code"] == 400
    assert "max_tokens" in answers["wrong"]["response"]["body"]["error"]["message"]


@pytest.mark.parametrize("status_code", [429, 503])
def test_who_is_refused_waits_as_long_as_the_service_says(status_code: int) -> None:
    answers = [refusal(status_code, "full", **{"retry-after": "7"})] * 3 + [completion("a")]
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    async def ask() -> int | None:
        def answer(_: httpx2.Request) -> httpx2.Response:
            sent = answers.pop(0)
            return httpx2.Response(
                sent.status_code, content=bytes(sent.body), headers=dict(sent.headers)
            )

        transport = httpx2.MockTransport(answer)
        async with httpx2.AsyncClient(base_url="http://there", transport=transport) as client:
            request = BatchRequest("a", "/v1/completions", {}, "here:1")
            return (await BatchClient(client, QUICK, sleep).ask(request)).status_code

    assert asyncio.run(ask()) == 200
    assert slept == [7.0] * 3


def test_connections_that_break_are_tried_again_while_nobody_fares_better(
    service: ScriptedService, url: str, tmp_path: Path
) -> None:
    service.handle = lambda body, tries: Hangup() if tries < 5 else completion(body["prompt"])
    answers = read(run(write(tmp_path / "input.jsonl", line("a")), url))
    assert answers["a"]["response"]["status_code"] == 200
    assert service.prompts() == ["a"] * 6
    assert QUICK.max_broken < 5


def fail_some(body: dict[str, Any], _tries: int) -> Response:
    answers: dict[str, Response] = {
        "breaks": Hangup(),
        "wrong": refusal(400, "no such field"),
        "fault": refusal(500, "out of luck"),
    }
    return answers.get(body["prompt"]) or completion(body["prompt"])


def test_errors_are_lines_and_those_that_may_pass_are_asked_again(
    service: ScriptedService, url: str, tmp_path: Path
) -> None:
    service.handle = fail_some
    path = write(tmp_path / "input.jsonl", *map(line, ("breaks", "wrong", "fault", "a", "b")))
    answers = read(run(path, url, concurrency=2))
    assert answers["breaks"]["response"] is None
    assert answers["breaks"]["error"]["code"] == "connection_error"
    assert answers["wrong"]["response"]["status_code"] == 400
    assert answers["wrong"]["response"]["body"] == {"error": {"message": "no such field"}}
    assert answers["fault"]["response"]["status_code"] == 500
    service.bodies.clear()
    service.handle = lambda body, _: completion(body["prompt"])
    again = read(run(path, url))
    assert sorted(service.prompts()) == ["breaks", "fault"]
    assert again.keys() == answers.keys()
    assert again["breaks"]["response"]["status_code"] == 200
    assert again["wrong"] == answers["wrong"]
    assert not list(tmp_path.glob("*.new"))


def test_a_torn_last_line_is_cut_and_asked_again(
    service: ScriptedService, url: str, tmp_path: Path
) -> None:
    path = write(tmp_path / "input.jsonl", *map(line, "abc"))
    answers = run(path, url)
    whole = answers.read_bytes()
    torn = json.loads(whole.splitlines()[-1])["custom_id"]
    answers.write_bytes(whole[:-20])
    service.bodies.clear()
    assert read(run(path, url)).keys() == {"a", "b", "c"}
    assert service.prompts() == [torn]


def test_a_signal_stops_it_and_the_next_run_asks_the_rest(
    service: ScriptedService, url: str, tmp_path: Path
) -> None:
    names = [f"d{i}" for i in range(30)]
    path = write(tmp_path / "input.jsonl", *map(line, names))
    service.delay_s = 0.05
    answers = path.with_name("output.jsonl")

    def interrupt() -> None:
        while not answers.exists() or answers.read_bytes().count(b"\n") < 5:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    def handler(*_: object) -> None:
        raise AssertionError("stands for the one of a service that was started")

    before = signal.signal(signal.SIGTERM, handler)
    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        run(path, url)
    thread.join()
    assert signal.signal(signal.SIGTERM, before) is handler
    first = read(answers)
    assert 5 <= len(first) < 30
    other = ScriptedService()  # what the first run had sent may still reach the service
    with listening(other.app) as other_url:
        assert read(run(path, other_url)).keys() == set(names)
    assert set(other.prompts()) == set(names) - first.keys()
    assert len(other.prompts()) == 30 - len(first)


def test_it_stops_when_nothing_is_answered_any_more(
    service: ScriptedService, url: str, tmp_path: Path
) -> None:
    service.handle = lambda *_: refusal(503, "no replica")
    path = write(tmp_path / "input.jsonl", *map(line, "abc"))
    rules = RetryRules(first_wait_s=0.01, longest_wait_s=0.02, patience_s=0.2)
    with pytest.raises(PageRayError, match="no replica"):
        run(path, url, rules)
    assert (tmp_path / "output.jsonl").read_text() == ""


def test_a_key_that_is_not_known_stops_it(
    service: ScriptedService, url: str, tmp_path: Path
) -> None:
    service.handle = lambda *_: refusal(401, "Who is it?")
    with pytest.raises(PageRayError, match="Who is it"):
        run(write(tmp_path / "input.jsonl", line("a")), url)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (line("a"), "that of"),
        (line(""), "no custom_id"),
        (line("b", custom_id=3), "no custom_id"),
        ('{"custom_id": "b", ', "no JSON"),
        ("[]", "no JSON object"),
        (line("b", method="GET"), "POST"),
        (line("b", url="/v1/embeddings"), "url"),
        (line("b", body="hello"), "body"),
        (line("b", body={"prompt": "b", "stream": True}), "stream"),
    ],
)
def test_a_line_that_cannot_be_asked_is_named(
    tmp_path: Path, wrong: dict[str, Any] | str, says: str
) -> None:
    path = write(tmp_path / "input.jsonl", line("a"), "", wrong, line("c"))
    with pytest.raises(InvalidConfig, match=says) as error:
        read_custom_ids(path)
    assert error.value.cause.startswith(f"{path}:3")


def test_a_batch_is_read_a_line_at_a_time(tmp_path: Path) -> None:
    requests = read_batch(write(tmp_path / "input.jsonl", line("a"), "no JSON"))
    assert next(requests).custom_id == "a"
    with pytest.raises(InvalidConfig):
        next(requests)


def test_answers_to_something_else_are_refused_and_kept(tmp_path: Path) -> None:
    answers = write(tmp_path / "output.jsonl", {"custom_id": "z", "response": None})
    with pytest.raises(InvalidConfig, match='1 answers "z"'):
        BatchOutput(answers, {"a"})
    write(answers, "my notes")
    with pytest.raises(InvalidConfig, match=":1 is no answer"):
        BatchOutput(answers, {"a"})
    assert answers.read_text() == "my notes\n"


def test_two_runs_cannot_write_to_one_file(tmp_path: Path) -> None:
    path = tmp_path / "output.jsonl"
    with BatchOutput(path, {"a"}), pytest.raises(InvalidConfig, match="Another run"):
        BatchOutput(path, {"a"})
    with BatchOutput(path, {"a"}):
        pass
