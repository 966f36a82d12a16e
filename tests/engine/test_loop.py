"""Engine loop: the step thread, its inbox, failure and stop."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue

import pytest

from engine.batch import Batch
from engine.config import EngineConfig
from engine.core import EngineCore
from engine.errors import InvalidRequest, Overloaded, ReplicaLost
from engine.loop import EngineLoop
from engine.output import FinishReason, StepOutput, TokenOutput
from engine.request import GenerateRequest
from engine.sampling_params import SamplingParams
from engine.snapshot import EngineSnapshot
from tests.fakes import FakeClock, FakeExecutor, Gate

TIMEOUT_S = 30  # only ever reached by a failing test


class Listener:
    """Collects what the loop reports."""

    def __init__(self) -> None:
        self.steps: SimpleQueue[tuple[StepOutput, EngineSnapshot]] = SimpleQueue()
        self.failures: SimpleQueue[BaseException] = SimpleQueue()
        self.threads: set[str] = set()

    def on_step(self, output: StepOutput, snapshot: EngineSnapshot) -> None:
        self.threads.add(threading.current_thread().name)
        self.steps.put((output, snapshot))

    def until_finished(self, num_sequences: int) -> list[TokenOutput]:
        """Wait for that many sequences to end; return all outputs so far."""
        outputs: list[TokenOutput] = []
        while sum(o.finish_reason is not None for o in outputs) < num_sequences:
            outputs += self.steps.get(timeout=TIMEOUT_S)[0].outputs
        return outputs


class Harness:
    """A loop over a fake executor."""

    def __init__(self, on_execute: Callable[[Batch], None] | None = None) -> None:
        self.clock = FakeClock()
        self.executor = FakeExecutor(64, 4, on_execute=on_execute)
        self.listener = Listener()
        config = EngineConfig(model_path=Path("unused"), model_name="fake", block_size=4)
        core = EngineCore(
            config,
            self.executor,
            max_model_len=64,
            eos_token_ids=frozenset(),
            vocab_size=1000,
            clock=self.clock,
        )
        self.loop = EngineLoop(
            core, on_step=self.listener.on_step, on_failure=self.listener.failures.put
        )

    def add(self, request_id: str, max_tokens: int = 3, n: int = 1) -> Future[None]:
        params = SamplingParams(max_tokens=max_tokens, n=n)
        return self.loop.add(
            GenerateRequest(request_id=request_id, prompt_token_ids=[1, 2], params=params)
        )


@contextmanager
def running(on_execute: Callable[[Batch], None] | None = None) -> Iterator[Harness]:
    harness = Harness(on_execute)
    harness.loop.start()
    try:
        yield harness
    finally:
        assert harness.loop.stop(TIMEOUT_S)
        assert not any(t.name == "pageray-step" for t in threading.enumerate())


def test_requests_run_to_their_end_on_the_step_thread() -> None:
    with running() as harness:
        futures = [harness.add(str(i)) for i in range(5)]
        outputs = harness.listener.until_finished(5)
        assert [future.result(TIMEOUT_S) for future in futures] == [None] * 5
        assert len(outputs) == 15
        assert harness.listener.threads == {"pageray-step"}


def test_refused_request_fails_its_future_and_nothing_else() -> None:
    gate = Gate()
    with running(gate.wait) as harness:
        first = harness.add("a")
        second = harness.add("a")
        gate.open()
        with pytest.raises(InvalidRequest, match="in use"):
            second.result(TIMEOUT_S)
        assert first.result(TIMEOUT_S) is None
        harness.listener.until_finished(1)


def test_bug_in_admission_reaches_the_caller_and_not_the_others() -> None:
    with running() as harness:
        params = SamplingParams(max_tokens=1)
        broken = GenerateRequest(request_id="a", prompt_token_ids=["x"], params=params)  # type: ignore[list-item]
        with pytest.raises(TypeError):
            harness.loop.add(broken).result(TIMEOUT_S)
        harness.add("b")
        harness.listener.until_finished(1)


def test_cancelled_future_keeps_its_request_out() -> None:
    gate = Gate()
    with running(gate.wait) as harness:
        harness.add("a")
        assert gate.entered.wait(TIMEOUT_S)
        second = harness.add("b")
        assert second.cancel()
        gate.open()
        outputs = harness.listener.until_finished(1)
        assert {output.request_id for output in outputs} == {"a"}
        with pytest.raises(CancelledError):
            second.result(TIMEOUT_S)


def test_abort_is_reported_with_a_snapshot_of_freed_blocks() -> None:
    gate = Gate()
    with running(gate.wait) as harness:
        harness.add("a", max_tokens=60, n=2)
        assert gate.entered.wait(TIMEOUT_S)
        harness.loop.abort("a", 1)
        harness.loop.abort("a", 0)
        harness.loop.abort("unknown")
        gate.open()
        step, _ = harness.listener.steps.get(timeout=TIMEOUT_S)
        assert [output.finish_reason for output in step.outputs] == [None, None]
        (first, _), (second, snapshot) = (
            harness.listener.steps.get(timeout=TIMEOUT_S) for _ in range(2)
        )
        aborted = [*first.outputs, *second.outputs]
        assert [(o.choice_index, o.finish_reason) for o in aborted] == [
            (1, FinishReason.ABORT),
            (0, FinishReason.ABORT),
        ]
        assert snapshot.num_running == 0
        assert snapshot.num_usable_blocks == snapshot.num_blocks


def test_hung_step_shows_a_growing_age_to_other_threads() -> None:
    gate = Gate()
    with running(gate.wait) as harness:
        harness.clock.advance(100)
        assert harness.loop.snapshot().step_age_s == 0
        harness.add("a", max_tokens=1)
        assert gate.entered.wait(TIMEOUT_S)
        harness.clock.advance(3)
        hung = harness.loop.snapshot()
        assert hung.step_age_s == 3
        assert hung.num_waiting == 1
        harness.clock.advance(4)
        assert harness.loop.snapshot().step_age_s == 7
        gate.open()
        harness.listener.until_finished(1)
        assert harness.loop.snapshot().step_age_s == 0
        assert harness.loop.snapshot().num_steps == 1


def test_idle_loop_sleeps_and_wakes_for_work() -> None:
    with running() as harness:
        for i in range(3):
            harness.add(str(i), max_tokens=2)
            harness.listener.until_finished(1)
        # Two tokens each: had it spun in between, there would be more steps.
        assert harness.loop.snapshot().num_steps == 6
        assert harness.listener.steps.empty()


def test_stop_aborts_live_requests_and_shuts_down() -> None:
    gate = Gate()
    harness = Harness(gate.wait)
    harness.loop.start()
    harness.add("a", max_tokens=60, n=2)
    assert gate.entered.wait(TIMEOUT_S)
    assert not harness.loop.stop(timeout_s=0)  # the step under way has not ended
    late = harness.add("late")
    gate.open()
    assert harness.loop.stop(TIMEOUT_S)
    outputs = harness.listener.until_finished(2)
    assert [o.finish_reason for o in outputs if o.finish_reason] == [FinishReason.ABORT] * 2
    assert harness.executor.is_shut_down
    for future in (late, harness.add("later")):
        with pytest.raises(Overloaded, match="stopping"):
            future.result(TIMEOUT_S)


def test_stop_before_start_refuses_what_was_queued() -> None:
    harness = Harness()
    early = harness.add("a")
    assert harness.loop.stop()
    with pytest.raises(Overloaded):
        early.result(TIMEOUT_S)
    assert harness.executor.is_shut_down


def test_failed_step_is_reported_and_no_future_is_lost() -> None:
    gate = Gate()

    def fail(batch: Batch) -> None:
        gate.wait(batch)
        raise RuntimeError("rank 1 is gone")

    with running(fail) as harness:
        harness.add("a")
        assert gate.entered.wait(TIMEOUT_S)
        queued = harness.add("b")
        gate.open()
        failure = harness.listener.failures.get(timeout=TIMEOUT_S)
        assert str(failure) == "rank 1 is gone"
        for future in (queued, harness.add("c")):
            with pytest.raises(ReplicaLost, match="rank 1 is gone"):
                future.result(TIMEOUT_S)


def test_adds_racing_with_stop_all_get_an_answer() -> None:
    harness = Harness()
    harness.loop.start()
    futures: list[list[Future[None]]] = [[] for _ in range(4)]
    started = threading.Barrier(5)

    def submit(thread_index: int) -> None:
        started.wait(TIMEOUT_S)
        for i in range(200):
            futures[thread_index].append(harness.add(f"{thread_index}-{i}"))

    threads = [threading.Thread(target=submit, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    started.wait(TIMEOUT_S)
    assert harness.loop.stop(TIMEOUT_S)
    for thread in threads:
        thread.join(TIMEOUT_S)
    num_admitted = 0
    for future in (future for mine in futures for future in mine):
        error = future.exception(TIMEOUT_S)
        assert error is None or isinstance(error, Overloaded)
        num_admitted += error is None
    outputs = harness.listener.until_finished(num_admitted)
    assert sum(o.finish_reason is not None for o in outputs) == num_admitted
