"""An engine without a model, a TCP relay that can be cut, and makers of messages."""

import asyncio
import queue
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import grpc
import grpc.aio

from cluster.messages import Frame, Message, encode
from cluster.submit_client import SubmitClient
from cluster.token_client import TokenClient
from cluster.token_hub import HubLimits
from cluster.token_server import METHOD, SERVICE, TokenServer
from cluster.token_stream import CHANNEL_OPTIONS
from engine.output import FinishReason, StepOutput, TokenOutput
from engine.request import GenerateRequest
from engine.sampling_params import SamplingParams
from engine.snapshot import EngineSnapshot

HOST = "127.0.0.1"
TOKEN = "right token"
TIMEOUT_S = 20.0
"""Reached only when a test fails."""


def make_request(request_id: str, *, n: int = 1, num_prompt_tokens: int = 3) -> GenerateRequest:
    prompt = list(range(num_prompt_tokens))
    params = SamplingParams(n=n)
    return GenerateRequest(request_id=request_id, prompt_token_ids=prompt, params=params)


def make_snapshot(**fields: Any) -> EngineSnapshot:
    snapshot = EngineSnapshot(
        epoch="first",
        sequence=1,
        block_size=16,
        num_blocks=100,
        num_free_blocks=100,
        num_evictable_blocks=0,
    )
    return replace(snapshot, **fields)


def output(
    request_id: str, index: int, finish_reason: FinishReason | None = None, choice_index: int = 0
) -> TokenOutput:
    token_ids = [1000 + index]
    return TokenOutput(request_id, choice_index, index, token_ids, finish_reason=finish_reason)


class FakeEngine:
    """Behaves to its server as EngineLoop does; steps when the test says so, on its own thread."""

    def __init__(self, epoch: str = "first") -> None:
        self.on_step: Callable[[StepOutput, EngineSnapshot], None]
        self.added: queue.Queue[GenerateRequest] = queue.Queue()
        self.aborted: queue.Queue[str] = queue.Queue()
        self.refusals: dict[str, Exception] = {}
        self.step_age_s = 0.0
        self._live: dict[str, set[int]] = {}
        self._sequence = 1
        self._epoch = epoch
        self._step_thread = ThreadPoolExecutor(1)

    def add(self, request: GenerateRequest) -> "Future[None]":
        return self._step_thread.submit(self._add, request)

    def abort(self, request_id: str, choice_index: int | None = None) -> None:
        self._step_thread.submit(self._abort, request_id, choice_index)

    def snapshot(self) -> EngineSnapshot:
        return make_snapshot(epoch=self._epoch, sequence=self._sequence, step_age_s=self.step_age_s)

    def step(self, *outputs: TokenOutput) -> None:
        """Make one step with these outputs."""
        self._step_thread.submit(self._publish, list(outputs))

    def drain(self) -> None:
        """Wait until all steps so far are made."""
        self._step_thread.submit(bool).result()

    def close(self) -> None:
        self._step_thread.shutdown()

    def _add(self, request: GenerateRequest) -> None:
        if request.request_id in self.refusals:
            raise self.refusals[request.request_id]
        self._live[request.request_id] = set(range(request.params.n))
        self.added.put(request)

    def _abort(self, request_id: str, choice_index: int | None) -> None:
        live = self._live.get(request_id, set())
        ended = live if choice_index is None else live & {choice_index}
        if ended:
            self._publish(
                [TokenOutput(request_id, i, 0, [], None, FinishReason.ABORT) for i in list(ended)]
            )
            self.aborted.put(request_id)

    def _publish(self, outputs: list[TokenOutput]) -> None:
        self._sequence += 1
        for each in outputs:
            if each.finish_reason is not None:
                self._live[each.request_id].remove(each.choice_index)
        self.on_step(StepOutput(outputs, len(outputs), len(outputs)), self.snapshot())


class Relay:
    """Sits between a client and a server."""

    def __init__(self, target: str) -> None:
        self.target = target
        self._to_client = asyncio.Event()
        self._to_client.set()
        self._writers: list[asyncio.StreamWriter] = []
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> str:
        self._server = await asyncio.start_server(self._relay, HOST, 0)
        return f"{HOST}:{self._server.sockets[0].getsockname()[1]}"

    def hold(self) -> None:
        """Let the server speak into the void from now on."""
        self._to_client.clear()

    def cut(self) -> None:
        """Break all connections; new ones work."""
        for task in self._tasks:
            task.cancel()
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()
        self._tasks.clear()
        self._to_client.set()

    async def close(self) -> None:
        self._server.close()
        self.cut()
        await self._server.wait_closed()

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, port = self.target.split(":")
        server_reader, server_writer = await asyncio.open_connection(host, int(port))
        self._writers += [writer, server_writer]
        self._tasks += [
            asyncio.create_task(self._pump(reader, server_writer, None)),
            asyncio.create_task(self._pump(server_reader, writer, self._to_client)),
        ]

    async def _pump(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        allowed: asyncio.Event | None,
    ) -> None:
        while chunk := await reader.read(65536):
            if allowed is not None:
                await allowed.wait()
            writer.write(chunk)
            await writer.drain()
        writer.close()


@dataclass
class Received:
    """What a TokenClient called back with."""

    frames: list[Frame] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def on_frame(self, replica_id: str, frame: Frame) -> None:
        assert replica_id == "replica"
        self.frames.append(frame)
        self.changed.set()

    def on_lost(self, replica_id: str, reason: str) -> None:
        assert replica_id == "replica"
        self.lost.append(reason)
        self.changed.set()

    @property
    def outputs(self) -> list[TokenOutput]:
        return [each for frame in self.frames for each in frame.outputs]

    @property
    def accepted(self) -> list[str]:
        return [request_id for frame in self.frames for request_id in frame.accepted]

    @property
    def cached(self) -> set[bytes]:
        """What the engine has cached, by all that was told."""
        keys: set[bytes] = set()
        for frame in self.frames:
            assert keys.isdisjoint(frame.changes.added)
            assert keys.issuperset(frame.changes.removed)
            keys = (keys | set(frame.changes.added)) - set(frame.changes.removed)
        return keys

    async def wait_outputs(self, num_outputs: int) -> None:
        await self.wait(lambda: len(self.outputs) >= num_outputs)

    async def wait(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(TIMEOUT_S):
            while not condition():
                self.changed.clear()
                await self.changed.wait()


class Setup:
    """One server over a fake engine, and clients that are closed with it."""

    def __init__(self, engine: FakeEngine, server: TokenServer, address: str) -> None:
        self.engine = engine
        self.server = server
        self.address = address
        self.closers: list[Callable[[], Awaitable[None]]] = []

    async def frontend(
        self, peer_id: str = "frontend", *, address: str | None = None, **options: Any
    ) -> Received:
        """A connected TokenClient's ear."""
        received, _ = self.client(peer_id, address=address, **options)
        await received.wait(lambda: received.frames)
        return received

    def client(
        self, peer_id: str = "frontend", *, address: str | None = None, **options: Any
    ) -> tuple[Received, TokenClient]:
        received = Received()
        client = TokenClient(
            "replica",
            address or self.address,
            peer_id=peer_id,
            on_frame=received.on_frame,
            on_lost=received.on_lost,
            **{"token": TOKEN, **options},
        )
        client.start()

        async def close() -> None:
            client.close()
            await client.wait_closed()

        self.closers.append(close)
        return received, client

    async def supervisor(self) -> SubmitClient:
        supervisor = SubmitClient(self.address, token=TOKEN, peer_id="supervisor")
        await supervisor.connect()
        self.closers.append(supervisor.close)
        return supervisor

    async def raw(self, *messages: Message) -> Any:
        """A gRPC call of our own making, with these messages sent."""
        channel = grpc.aio.insecure_channel(self.address, options=CHANNEL_OPTIONS)
        call: Any = channel.stream_stream(f"/{SERVICE}/{METHOD}")()
        for message in messages:
            await call.write(encode(message))

        async def close() -> None:
            call.cancel()
            await channel.close()

        self.closers.append(close)
        return call

    async def submit(
        self, supervisor: SubmitClient, request: GenerateRequest, frontend_id: str = "frontend"
    ) -> "asyncio.Task[None]":
        """Submit a request and wait until the engine has it."""
        task = asyncio.create_task(supervisor.submit(frontend_id, request))
        added = await asyncio.to_thread(self.engine.added.get, timeout=TIMEOUT_S)
        assert added == request
        return task

    async def close(self) -> None:
        for close in reversed(self.closers):
            await close()

    async def wait_aborted(self) -> str:
        return await asyncio.to_thread(self.engine.aborted.get, timeout=TIMEOUT_S)


async def read_to_end(call: Any) -> grpc.aio.AioRpcError:
    """Read what the server still has to say; return the status that it ends with."""
    try:
        while await call.read() is not grpc.aio.EOF:
            pass
    except grpc.aio.AioRpcError as error:
        return error
    raise AssertionError("the server ended the stream as if all were well")


@asynccontextmanager
async def serving(engine: FakeEngine | None = None, **limits: Any) -> AsyncIterator[Setup]:
    """A running server; everything is gone at the end."""
    engine = engine or FakeEngine()
    server = TokenServer(engine, token=TOKEN, host=HOST, limits=HubLimits(**limits))
    address = await server.start()
    engine.on_step = server.on_step
    setup = Setup(engine, server, address)
    try:
        async with asyncio.timeout(TIMEOUT_S):
            yield setup
    finally:
        await setup.close()
        await server.stop()
        engine.close()
