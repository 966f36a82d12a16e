"""When a step is held to hang."""

from engine.core import EngineCore
from engine.step_limit import MIN_LIMIT_S, UNKNOWN_LIMIT_S, StepLimit
from engine.step_time import StepTimeFit, StepWork
from tests.engine.test_core import ask, make_core
from tests.fakes import FakeClock, FakeExecutor


def observed(step_time: StepTimeFit, limit: StepLimit, work: StepWork, seconds: float) -> None:
    limit.begin(work)
    step_time.observe(work, seconds)
    limit.end(work)


def limit_of(limit: StepLimit, work: StepWork) -> float:
    """Of a step after one of its own kind."""
    limit.begin(work)
    limit.begin(work)
    return limit.seconds


def prefill(num_tokens: int) -> StepWork:
    work = StepWork()
    work.add_chunk(num_tokens, 0)
    return work


def test_a_step_may_take_ten_times_what_its_like_have_taken_and_never_less_than_seconds() -> None:
    step_time = StepTimeFit()
    limit = StepLimit(step_time)
    decode = StepWork(num_decodes=1)
    assert limit_of(limit, decode) == UNKNOWN_LIMIT_S
    for _ in range(40):
        observed(step_time, limit, decode, 0.01)
        observed(step_time, limit, prefill(100), 1.01)
    assert limit_of(limit, decode) == MIN_LIMIT_S
    assert 9 < limit_of(limit, prefill(100)) < 11
    # Twice as much is foreseen; more is like nothing before it.
    assert limit_of(limit, prefill(200)) < UNKNOWN_LIMIT_S
    assert limit_of(limit, prefill(201)) == UNKNOWN_LIMIT_S


def test_the_step_before_it_may_still_be_under_way() -> None:
    step_time = StepTimeFit()
    limit = StepLimit(step_time)
    decode = StepWork(num_decodes=1)
    for _ in range(40):
        observed(step_time, limit, decode, 0.01)
    limit.begin(decode)
    limit.begin(prefill(100))
    limit.begin(decode)
    assert limit.seconds == UNKNOWN_LIMIT_S
    limit.begin(decode)
    assert limit.seconds == MIN_LIMIT_S


def test_the_limit_is_set_before_a_step_that_hangs() -> None:
    seen: list[float] = []

    class Watching(FakeExecutor):
        def execute(self, batch):  # type: ignore[no-untyped-def]
            seen.append(core.step_limit_s)
            return super().execute(batch)

    core: EngineCore = make_core(Watching(64, 4, vocab_size=100), clock=FakeClock())
    core.add(ask("r", [1, 2, 3], max_tokens=40))
    while core.has_work:
        core.step()
    assert seen[0] == UNKNOWN_LIMIT_S
    assert seen[-1] == MIN_LIMIT_S
    assert core.snapshot().step_limit_s == MIN_LIMIT_S
