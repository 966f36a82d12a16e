"""Replicas with real engines that stop at a given token, so that they can be killed right there."""

import asyncio
import threading
from concurrent.futures import Future
from pathlib import Path

from engine.build import build_core
from engine.config import EngineConfig
from engine.loop import EngineLoop
from engine.output import StepOutput
from engine.parallel import TensorParallel
from engine.request import GenerateRequest
from engine.snapshot import EngineSnapshot
from tests.cluster.token_fakes import TIMEOUT_S, Setup, serving
from tests.deployments.failover_fakes import Replicas

BLOCK_SIZE = 16


class Gate:
    """Lets so many tokens of all engines together out, and then holds the engine that goes on."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.arm(None)

    def arm(self, num_tokens: int | None) -> None:
        """Hold the engine that has a token after so many, or none; a step's tokens go together."""
        self.held: str | None = None
        """Who stands at it."""
        self.num_tokens = 0
        """That have passed."""
        self._limit = num_tokens
        self._is_held = threading.Event()
        self._may_go = threading.Event()

    def wait_held(self) -> str:
        """Wait until one is held; return its name."""
        assert self._is_held.wait(TIMEOUT_S)
        assert self.held is not None
        return self.held

    def go_on(self, num_more_tokens: int | None) -> None:
        """Let the one that is held go, and arm it again."""
        with self._lock:
            may_go = self._may_go
            self.arm(num_more_tokens)
        may_go.set()

    def pass_through(self, name: str, num_tokens: int) -> None:
        """Called by the engine `name` before so many tokens go out."""
        with self._lock:
            may_go = self._may_go
            if self._limit is None or self.num_tokens < self._limit:
                self.num_tokens += num_tokens
                return
            self.held = name
            self._is_held.set()
        assert may_go.wait(TIMEOUT_S)


class GatedEngine:
    """A real engine behind a gate; what it says after its death is not heard."""

    def __init__(self, name: str, config: EngineConfig, gate: Gate) -> None:
        self._name = name
        self._gate = gate
        self._is_dead = False
        self.on_step = _drop
        self.failures: list[BaseException] = []
        self._loop = EngineLoop(
            build_core(config, TensorParallel.single()),
            on_step=self._publish,
            on_failure=self.failures.append,
        )
        self._loop.start()

    def add(self, request: GenerateRequest) -> "Future[None]":
        return self._loop.add(request)

    def abort(self, request_id: str, choice_index: int | None = None) -> None:
        self._loop.abort(request_id, choice_index)

    def snapshot(self) -> EngineSnapshot:
        return self._loop.snapshot()

    def die(self) -> None:
        """Say nothing more."""
        self._is_dead = True

    def close(self) -> None:
        assert self._loop.stop(TIMEOUT_S)
        assert not self.failures

    def _publish(self, output: StepOutput, snapshot: EngineSnapshot) -> None:
        num_tokens = sum(len(each.token_ids) for each in output.outputs)
        if num_tokens and not self._is_dead:
            self._gate.pass_through(self._name, num_tokens)
        if not self._is_dead:
            self.on_step(output, snapshot)


class RealReplicas(Replicas):
    """See Replicas; each has an engine of its own on the same model."""

    def __init__(self, config: EngineConfig) -> None:
        super().__init__()
        self.gate = Gate()
        self._config = config
        self._engines: dict[str, GatedEngine] = {}

    async def add(self, name: str) -> Setup:
        """Bring up one more, where nothing is cached, and wait until the source knows it."""
        engine = GatedEngine(name, self._config, self.gate)
        setup = await self._stack.enter_async_context(serving(engine))  # type: ignore[arg-type]
        self._engines[name] = engine
        self.setups[name] = setup
        self._supervisors[name] = await setup.supervisor()
        self.tell_members()
        async with asyncio.timeout(TIMEOUT_S):
            while not self._is_reported(name):  # noqa: ASYNC110  the board tells nobody
                await asyncio.sleep(0.01)
        return setup

    async def kill_held(self, num_more_tokens: int | None = None) -> None:
        """Kill the one at the gate, and let the others pass it, or so many more tokens."""
        name = self.gate.wait_held()
        self._engines[name].die()
        self.gate.go_on(num_more_tokens)
        await self.kill(name)

    async def replace(self, name: str, new_name: str) -> Setup:
        """Serve starts a new one in place of one that died."""
        del self.setups[name], self._engines[name]
        return await self.add(new_name)


def _drop(output: StepOutput, snapshot: EngineSnapshot) -> None:
    pass


def engine_config(model: Path, *, enable_prefix_caching: bool) -> EngineConfig:
    """Of engines whose tokens do not depend on where they come from, or beside what they run."""
    return EngineConfig(
        model_path=model,
        model_name="m",
        device="cpu",
        dtype="float32",
        block_size=BLOCK_SIZE,
        kv_cache_bytes=2 << 20,
        num_threads=1,
        deterministic=True,
        enable_prefix_caching=enable_prefix_caching,
    )
