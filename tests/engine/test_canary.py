"""The generation before an engine takes requests."""

import pytest

from engine.canary import CanaryDied, run_canary
from engine.output import StepOutput
from tests.engine.test_core import make_core
from tests.fakes import FakeExecutor


def test_a_sound_engine_passes_and_keeps_nothing() -> None:
    core = make_core()
    run_canary(core)
    snapshot = core.snapshot()
    assert snapshot.num_generated_tokens == 4
    assert snapshot.num_usable_blocks == snapshot.num_blocks
    assert not core.has_work


def test_the_smallest_context_is_enough() -> None:
    core = make_core(FakeExecutor(1, 4, vocab_size=100))
    run_canary(core)
    assert core.snapshot().num_generated_tokens == 1


def test_an_engine_that_loses_tokens_does_not_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    core = make_core()
    step = core.step

    def lose_the_first() -> StepOutput:
        output = step()
        return StepOutput(output.outputs[1:], 0, 0)

    monkeypatch.setattr(core, "step", lose_the_first)
    with pytest.raises(CanaryDied, match="0 tokens of 4"):
        run_canary(core)


def test_what_a_step_raises_goes_out(monkeypatch: pytest.MonkeyPatch) -> None:
    core = make_core()

    def fail() -> StepOutput:
        raise RuntimeError("the model gave logits that are not finite")

    monkeypatch.setattr(core, "step", fail)
    with pytest.raises(RuntimeError, match="not finite"):
        run_canary(core)
