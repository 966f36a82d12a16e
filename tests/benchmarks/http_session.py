"""A system behind its HTTP server."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from tests.benchmarks import figures, process_tree
from tests.benchmarks.failure import PeerFailed
from tests.benchmarks.load import Fields, Timing, by_token_ids, run_load
from tests.benchmarks.server import HOST, Server
from tests.benchmarks.systems.system import MODEL_NAME
from tests.benchmarks.workload import WARM_UP, Ask, Workload


@dataclass(frozen=True, slots=True)
class Launch:
    """How to start a server and ask it."""

    command: list[str]
    """`{port}` in it is replaced."""
    environment: dict[str, str] = field(default_factory=dict)
    ready_path: str = "/health"
    fields: Fields = by_token_ids


class HttpSession:
    """Measures one server."""

    def __init__(self, server: Server, fields: Fields, limit_s: float) -> None:
        self._server = server
        self._fields = fields
        self._limit_s = limit_s
        self._start_s = server.start_s

    def warm_up(self, asks: list[Ask]) -> None:
        """Answer one request, which ends the start, and then some more."""
        started = time.perf_counter()
        self._load(asks[:1], concurrency=1)
        self._start_s += time.perf_counter() - started
        self._load(asks[1:], WARM_UP.concurrency)

    def measure(self, workload: Workload, asks: list[Ask]) -> figures.Figures:
        """Run one workload."""
        pid = self._server.pid
        server_cpu_s, client_cpu_s = process_tree.cpu_seconds(pid), time.process_time()
        timings, wall_s = self._load(asks, workload.concurrency)
        client_cpu_s = time.process_time() - client_cpu_s
        usage = figures.Usage(
            start_s=self._start_s,
            server_cpu_s=process_tree.cpu_seconds(pid) - server_cpu_s,
            client_cpu_s=client_cpu_s,
            peak_bytes=process_tree.peak_bytes(pid),
        )
        return figures.of_load(timings, wall_s, usage)

    def _load(self, asks: list[Ask], concurrency: int) -> tuple[list[Timing], float]:
        load = run_load(HOST, self._server.port, MODEL_NAME, asks, concurrency, self._fields)
        try:
            return asyncio.run(asyncio.wait_for(load, self._limit_s))
        except TimeoutError:
            late = f"{len(asks)} requests not done after {self._limit_s:g} s"
            raise PeerFailed(f"{late}\n{self._server.log_tail()}") from None
        except (OSError, RuntimeError) as error:
            raise PeerFailed(f"{error}\n{self._server.log_tail()}") from error


@contextmanager
def open_http(launch: Launch, warm_up: list[Ask], limit_s: float) -> Iterator[HttpSession]:
    """Start a server and warm it up."""
    with Server(launch.command, launch.environment, launch.ready_path) as server:
        session = HttpSession(server, launch.fields, limit_s)
        session.warm_up(warm_up)
        yield session
