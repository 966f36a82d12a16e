"""What steps cost, as it is learned, and how much prefill a step gets by it."""

from pathlib import Path

import pytest

from engine.batch import Batch
from engine.config import EngineConfig, Preset
from engine.core import EngineCore
from engine.request import GenerateRequest
from engine.sampling_params import SamplingParams
from engine.step_budget import StepBudget
from engine.step_time import StepTimeFit, StepWork
from tests.fakes import FakeClock, FakeExecutor


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


def test_decodes_of_tenants_that_are_ahead_give_way_to_prefill() -> None:
    def seconds(num_ahead: int) -> float:
        return StepBudget(Preset.BALANCED, fitted()).prefill_s(StepWork(64), 3, num_ahead)

    assert seconds(0) < seconds(32) < float("inf")
    assert seconds(64) == float("inf")


def test_some_step_of_a_long_prefill_goes_without_it() -> None:
    budget = StepBudget(Preset.BALANCED, fitted())
    seconds = [budget.prefill_s(StepWork(4), 1) for _ in range(64)]
    assert seconds.count(0.0) == 4


@pytest.mark.parametrize("preset", [Preset.BALANCED, Preset.INTERACTIVE])
@pytest.mark.parametrize(
    ("graph_s", "launched_s", "token_s"),
    [(0.0008, 0.0045, 3e-6), (0.003, 0.0055, 15e-6), (0.006, 0.006, 25e-6)],
)
def test_prompts_go_on_beside_decodes_where_only_those_have_graphs(
    preset: Preset, graph_s: float, launched_s: float, token_s: float
) -> None:
    """Leaving the graphs costs as much as hundreds of tokens: taken for theirs, it starves them."""
    clock = FakeClock()

    def pass_time(batch: Batch) -> None:
        num_tokens = batch.num_tokens
        is_graph = num_tokens == len(batch.requests) == len(batch.wanting)
        clock.advance(graph_s if is_graph else max(launched_s, graph_s + token_s * num_tokens))

    core = EngineCore(
        EngineConfig(
            model_path=Path("unused"),
            model_name="fake",
            preset=preset,
            max_num_batched_tokens=2048,
            enable_prefix_caching=False,
        ),
        FakeExecutor(2000, 16, on_execute=pass_time, is_overlapping=True),
        max_model_len=8000,
        eos_token_ids=frozenset(),
        vocab_size=1000,
        clock=clock,
    )
    for i in range(8):
        params = SamplingParams(max_tokens=2000, ignore_eos=True)
        core.add(GenerateRequest(request_id=f"{i}", prompt_token_ids=[1] * 8, params=params))
    for round_ in range(3):
        for _ in range(100):
            core.step()
        params = SamplingParams(max_tokens=1)
        name, num_steps = f"long {round_}", 0
        core.add(GenerateRequest(request_id=name, prompt_token_ids=[2] * 2000, params=params))
        while all(output.request_id != name for output in core.step().outputs):
            num_steps += 1
        assert num_steps <= 50
