"""`pageray serve` end to end: real Ray, real model, real HTTP."""

import asyncio
import json
import os
import select
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import httpx2
import pytest

from tests.benchmarks.load import run_load
from tests.benchmarks.workload import Ask
from tests.integration.serving import Serving, wait_until
from tests.readme.document import readme

pytestmark = [pytest.mark.ray, pytest.mark.slow]

MODEL = "smollm2"
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


def chat(serving: Serving, **fields: object) -> httpx2.Response:
    body = {"model": MODEL, "messages": QUESTION, "temperature": 0, "max_tokens": 20, **fields}
    return serving.client.post("/v1/chat/completions", json=body)


def test_chat_names_paris(smollm2_serving: Serving) -> None:
    answer = chat(smollm2_serving).json()
    assert "Paris" in answer["choices"][0]["message"]["content"]
    assert answer["choices"][0]["finish_reason"] == "stop"


def test_streamed_answer_equals_the_whole_one(smollm2_serving: Serving) -> None:
    whole = chat(smollm2_serving).json()["choices"][0]["message"]["content"]
    text = ""
    body = {"model": MODEL, "messages": QUESTION, "temperature": 0, "stream": True}
    with smollm2_serving.client.stream("POST", "/v1/chat/completions", json=body) as stream:
        for line in stream.iter_lines():
            if line.startswith("data: {"):
                text += json.loads(line[6:])["choices"][0]["delta"].get("content") or ""
    assert text == whole


def test_200_concurrent_streams_all_finish(smollm2_serving: Serving) -> None:
    asks = [Ask([1000 + i % 7, *range(1000, 1000 + i % 50)], 16) for i in range(200)]
    timings, _ = asyncio.run(
        run_load("127.0.0.1", smollm2_serving.port, MODEL, asks, concurrency=200)
    )
    assert [timing.num_tokens for timing in timings] == [16] * 200
    wait_until(lambda: smollm2_serving.num_used_blocks() == 0, 5, "all blocks back")


@pytest.mark.parametrize(
    ("fields", "status", "code_or_param"),
    [
        ({"model": "no-such-model"}, 404, "model_not_found"),
        ({"messages": [{"role": "user", "content": "word " * 20000}]}, 400, "context_length"),
        ({"temperature": 1000}, 400, "temperature"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, 400, "tools"),
        ({"max_tokns": 3}, 400, "max_tokens"),
        ({"messages": []}, 400, "messages"),
    ],
)
def test_bad_requests_get_their_4xx_with_cause(
    smollm2_serving: Serving, fields: dict[str, object], status: int, code_or_param: str
) -> None:
    response = chat(smollm2_serving, **fields)
    assert response.status_code == status
    error = response.json()["error"]
    assert code_or_param in json.dumps(error)
    assert error["message"]


def test_ranks_yield_to_nobody_of_the_service(smollm2_serving: Serving) -> None:
    [rank] = smollm2_serving.ranks()
    assert rank.nice() == min(process.nice() for process in smollm2_serving.processes())


def test_disconnect_gives_the_blocks_back(smollm2_serving: Serving) -> None:
    body = {"model": MODEL, "prompt": "Once upon a time", "max_tokens": 4000, "stream": True}
    body |= {"ignore_eos": True}
    with smollm2_serving.client.stream("POST", "/v1/completions", json=body) as stream:
        next(stream.iter_lines())
        wait_until(lambda: smollm2_serving.num_used_blocks() > 0, 10, "request runs")
    wait_until(lambda: smollm2_serving.num_used_blocks() == 0, 2, "blocks back")


def of_readme(text: str, serving: Serving) -> str:
    """What README has to copy, for this service in place of the default address."""
    assert "http://localhost:8000" in text
    return text.replace("http://localhost:8000", serving.url)


def run(*command: str, stdin: str = "") -> str:
    done = subprocess.run(
        command, input=stdin, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def pageray(serving: Serving, name: str, *words: str) -> list[str]:
    return [sys.executable, "-m", "deployments.cli", name, "--url", serving.url, *words]


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl here")
def test_first_request_of_the_readme(smollm2_serving: Serving) -> None:
    [block] = [each.text for each in readme().blocks if each.text.startswith("curl ")]
    answer = json.loads(run("/bin/sh", "-ec", of_readme(block, smollm2_serving)))
    assert "Paris" in answer["choices"][0]["message"]["content"]


def test_openai_client_of_the_readme(smollm2_serving: Serving) -> None:
    code = of_readme(readme().block("python", "OpenAI"), smollm2_serving)
    assert "Paris" in run(sys.executable, "-c", code)


def test_status_in_the_terminal(smollm2_serving: Serving) -> None:
    request_id = chat(smollm2_serving).json()["id"]
    assert "smollm2: 1 replica" in run(*pageray(smollm2_serving, "status"))
    assert request_id in run(*pageray(smollm2_serving, "status", "--why", request_id))


def test_status_is_watched(smollm2_serving: Serving) -> None:
    # Without a terminal there would be nothing before the end.
    ours, terminal = os.openpty()
    with os.fdopen(ours, "rb", buffering=0) as screen:
        watching = subprocess.Popen(
            pageray(smollm2_serving, "status", "--watch"), stdout=terminal, stderr=terminal
        )
        os.close(terminal)
        try:
            seen = b""
            while b": 1 replica" not in seen:
                assert select.select([screen], [], [], 30)[0], seen
                seen += screen.read(1 << 16)
            watching.send_signal(signal.SIGINT)
            assert watching.wait(30) == 0
        finally:
            watching.kill()
            watching.wait()


def test_chat_in_the_terminal(smollm2_serving: Serving) -> None:
    words = pageray(smollm2_serving, "chat", "--temperature", "0")
    assert "Paris" in run(*words, stdin="What is the capital of France?\n")


def test_killed_rank_is_rebuilt_and_all_that_it_had_goes_on(smollm2_serving: Serving) -> None:
    [rank] = smollm2_serving.ranks()
    # A prompt long enough not to have its first token when the kill comes.
    prompt = list(range(1000, 1000 + 600))
    body = {"model": MODEL, "prompt": prompt, "max_tokens": 4, "temperature": 0}
    started = {**body, "prompt": "Once", "max_tokens": 300, "stream": True, "ignore_eos": True}
    with ThreadPoolExecutor() as pool:
        with smollm2_serving.client.stream(
            "POST", "/v1/completions", json=started, headers={"x-request-id": "once"}
        ) as stream:
            lines = stream.iter_lines()
            assert next(lines).startswith("data: {")
            waiting = [
                pool.submit(smollm2_serving.client.post, "/v1/completions", json=body)
                for _ in range(4)
            ]
            wait_until(lambda: smollm2_serving.num_requests() > 1, 20, "requests at the engine")
            rank.kill()
            rest = [line for line in lines if line.startswith("data: ")]
        # The only replica was gone: the stream that had begun waited for the next one.
        assert json.loads(rest[-2][6:])["choices"][0]["finish_reason"] == "length"
        assert rest[-1] == "data: [DONE]"
        took = wait_until(lambda: chat(smollm2_serving).status_code == 200, 15, "service back")
        assert took < 15
        assert [future.result().status_code for future in waiting] == [200] * 4
    assert not rank.is_running()
    wait_until(lambda: smollm2_serving.num_used_blocks() == 0, 5, "no leaked block")
    assert len(smollm2_serving.ranks()) == 1
    records = smollm2_serving.log_records("Frontend")
    told = [record for record in records if record.get("request_id") == "once"]
    assert any("is gone" in record["message"] for record in told), records
    for text in ("capital of France", "Once"):
        assert not any(text in record["message"] for record in records), "prompts are nobody's"
