"""What steps cost, as it is learned, and how much prefill a step gets by it."""

import pytest

from engine.config import Preset
from engine.step_budget import StepBudget
from engine.step_time import StepTimeFit, StepWork


def fitted(*, pairs: float = 0.0, moves: float = 0.0) -> StepTimeFit:
    fit = StepTimeFit()
    for i in range(600):
        work = StepWork(i % 13, num_moves=i % 7 if moves else 0)
        work.add_chunk(50 * (i % 5), 100 * (i % 11))
        seconds = 0.01 + 0.001 * work.num_decodes + 0.0001 * work.num_prefill_tokens
        fit.observe(work, seconds + pairs * work.num_prefill_pairs + moves * work.num_moves)
    return fit


@pytest.mark.parametrize("pairs", [0.0, 1e-25, 1e-12, 1e-8, 1e-6])
def test_chunk_of_so_many_seconds_takes_so_many_seconds(pairs: float) -> None:
    fit = fitted()
    per_token = fit._prefill.coefficients[0]
    fit._prefill.coefficients[1:3] = pairs, 0.0
    for seconds in (1e-3, 0.02, 3.0):
        num_tokens = fit.tokens_within(seconds, 500)
        expected = per_token * num_tokens + pairs * num_tokens * (500 + num_tokens / 2)
        assert expected == pytest.approx(seconds)


def test_without_limit_a_chunk_has_none() -> None:
    for fit in (StepTimeFit(), fitted(), fitted(pairs=1e-8)):
        assert fit.tokens_within(float("inf"), 10) == float("inf")
    assert StepTimeFit().tokens_within(1.0, 10) == float("inf")


@pytest.mark.parametrize("preset", list(Preset))
def test_preset_may_be_given_as_a_plain_word(preset: Preset) -> None:
    fit = fitted()
    by_word = StepBudget(str(preset.value), fit)  # type: ignore[arg-type]
    for num_prefills in (1, 50):
        expected = StepBudget(preset, fit).prefill_s(StepWork(4), num_prefills)
        assert by_word.prefill_s(StepWork(4), num_prefills) == expected


def test_price_of_moves_is_forgotten_when_nothing_was_moved_for_long() -> None:
    fit = fitted(moves=0.002)
    assert fit.move_s == pytest.approx(0.002, rel=0.1)
    for _ in range(999):
        fit.observe(StepWork(8), 0.018)
    assert fit.move_s > 0
    fit.observe(StepWork(8), 0.018)
    assert fit.move_s == 0
    assert fit.predict(StepWork(8)) == pytest.approx(0.018, rel=0.05)
    for _ in range(50):
        fit.observe(StepWork(8, num_moves=3), 0.018 + 3 * 0.0005)
    assert fit.move_s == pytest.approx(0.0005, rel=0.2)


def test_long_stretch_of_mixed_steps_does_not_change_what_decodes_take() -> None:
    fit = fitted()
    before = fit.predict(StepWork(4))
    for i in range(2000):
        work = StepWork(4)
        work.add_chunk(5, 5 * i)
        fit.observe(work, before + 0.02)
    assert fit.predict(StepWork(4)) == pytest.approx(before)
    assert fit.predict(work) == pytest.approx(before + 0.02, rel=0.05)


def test_some_step_of_a_long_prefill_goes_without_it() -> None:
    budget = StepBudget(Preset.BALANCED, fitted())
    seconds = [budget.prefill_s(StepWork(4), 1) for _ in range(64)]
    assert seconds.count(0.0) == 4
