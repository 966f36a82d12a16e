"""What metrics and traces cost, as a share of what the engine needs for the same tokens.

    python -m tests.benchmarks.observability

CPU time of this process in each case, in turns: the engine alone, then the HTTP application on a
source that costs next to nothing, without metrics, with them, and with traces that go to an OTLP
receiver in a process of its own. What a scrape takes is told beside.
"""

import argparse
import asyncio
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from unittest.mock import patch

from opentelemetry.trace import Tracer
from starlette.applications import Starlette

from deployments.http_app import build_http_app
from deployments.http_settings import HttpSettings
from deployments.request_timer import RequestTimer
from deployments.served_model import ServedModel
from deployments.trace_export import TraceExport
from engine import LLM, SamplingParams
from engine.output import StartTimes
from engine.tokenizer import Tokenizer
from tests.deployments.asgi_client import AsgiCall
from tests.deployments.fake_token_source import FakeTokenSource
from tests.deployments.tiny_tokenizer import make_tokenizer
from tests.integration.otlp_receiver import otlp_receiver
from tests.integration.serving import free_port

NUM_STREAMS = 16
NUM_TOKENS = 128
SCRAPE_PERIOD_S = 15.0


class _NoTimer:
    """Measures nothing."""

    def __init__(self, *_: object) -> None:
        pass

    def begin(self) -> None:
        """See RequestTimer."""

    def on_piece(self, *_: object) -> None:
        """See RequestTimer."""

    def on_sent(self) -> None:
        """See RequestTimer."""

    def close(self, *_: object) -> None:
        """See RequestTimer."""


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--model", default="smollm2")
    arguments = parser.parse_args()
    port = free_port()
    here, there = multiprocessing.Pipe()
    receiver = multiprocessing.get_context("spawn").Process(target=receive, args=(port, there))
    receiver.start()
    here.recv()
    export = TraceExport(endpoint=f"http://127.0.0.1:{port}").open("benchmark")
    try:
        with tempfile.TemporaryDirectory() as folder, LLM(arguments.model) as llm:
            tokenizer = make_tokenizer(Path(folder))
            measure(llm, tokenizer, export.get_tracer("pageray"), arguments.rounds)
    finally:
        export.shutdown()
        here.send(None)
        print(f"{here.recv()} spans came to the receiver")
        receiver.join()


def measure(llm: LLM, tokenizer: Tokenizer, tracer: Tracer, num_rounds: int) -> None:
    """Take turns, then print medians."""
    cases: dict[str, Callable[[], float]] = {
        "engine": lambda: engine_s(llm),
        "no metrics": lambda: app_s(build(tokenizer, None), has_metrics=False),
        "metrics": lambda: app_s(build(tokenizer, None)),
        "metrics, traces": lambda: app_s(build(tokenizer, tracer)),
    }
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for case in cases.values():
        case()
    for _ in range(num_rounds):
        for name, case in cases.items():
            seconds[name].append(case())
    for name, each in seconds.items():
        us = 1e6 * statistics.median(each) / (NUM_STREAMS * NUM_TOKENS)
        print(f"{name:16} {us:8.1f} us of CPU a token")
    for name in ("metrics", "metrics, traces"):
        rounds = zip(seconds["no metrics"], seconds[name], seconds["engine"], strict=True)
        shares = [100 * (more - less) / engine for less, more, engine in rounds]
        middle = statistics.median(shares)
        print(f"{name}: {middle:.3f} % of the engine ({min(shares):.3f} to {max(shares):.3f})")
    page_s = scrape_s(build(tokenizer, None))
    share = 100 * page_s / SCRAPE_PERIOD_S
    print(f"a scrape: {1e3 * page_s:.1f} ms; every {SCRAPE_PERIOD_S:g} s {share:.3f} % of a core")


def build(tokenizer: Tokenizer, tracer: Tracer | None) -> Starlette:
    """The application on a source that says what stands ready."""
    source = FakeTokenSource(tokenizer, "x" * NUM_TOKENS)
    source.start_times = StartTimes(0.001, 0.01)
    model = ServedModel("tiny", max_model_len=4096, tokenizer=tokenizer, source=source)
    return build_http_app([model], HttpSettings(), tracer=tracer)


def app_s(app: Starlette, *, has_metrics: bool = True) -> float:
    """CPU seconds of a round of streams, exporting included."""
    body: dict[str, Any] = {"prompt": "x", "max_tokens": NUM_TOKENS, "stream": True}

    async def run() -> None:
        calls = [AsgiCall(app, "/v1/completions", body) for _ in range(NUM_STREAMS)]
        await asyncio.gather(*(call.run() for call in calls))

    with patch("deployments.completion.RequestTimer", RequestTimer if has_metrics else _NoTimer):
        began_s = time.process_time()
        asyncio.run(run())
        return time.process_time() - began_s


def engine_s(llm: LLM) -> float:
    """CPU seconds of the engine for as many tokens."""
    prompts = [[5 + i] * 16 for i in range(NUM_STREAMS)]
    params = SamplingParams(max_tokens=NUM_TOKENS, ignore_eos=True, temperature=0)
    began_s = time.process_time()
    llm.generate(prompts, params)
    return time.process_time() - began_s


def scrape_s(app: Starlette) -> float:
    """CPU seconds of GET /metrics after some requests."""
    app_s(app)
    began_s = time.process_time()
    asyncio.run(AsgiCall(app, "/metrics").run())
    return time.process_time() - began_s


def receive(port: int, pipe: Connection) -> None:
    """Be the receiver until told otherwise; tell how many spans have come."""
    with otlp_receiver(port) as receiver:
        pipe.send(None)
        pipe.recv()
        pipe.send(len(receiver.spans()))


if __name__ == "__main__":
    main()
