"""Engine core: what it refuses, what comes out, what the snapshot says."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engine.batch import Batch
from engine.config import EngineConfig
from engine.core import EngineCore
from engine.errors import InvalidRequest, Overloaded, PromptTooLong
from engine.output import FinishReason, StartTimes, TokenOutput
from engine.request import GenerateRequest
from engine.sampling_params import SamplingParams
from engine.step_time import StepTimeFit, StepWork
from tests.fakes import FakeClock, FakeExecutor

VOCAB = 100
MAX_MODEL_LEN = 64


def make_core(
    executor: FakeExecutor | None = None,
    *,
    eos: frozenset[int] = frozenset(),
    clock: FakeClock | None = None,
    **settings: Any,
) -> EngineCore:
    config = EngineConfig(
        model_path=Path("unused"), model_name="fake", **{"block_size": 4, **settings}
    )
    return EngineCore(
        config,
        executor or FakeExecutor(64, 4, vocab_size=VOCAB),
        max_model_len=MAX_MODEL_LEN,
        eos_token_ids=eos,
        vocab_size=VOCAB,
        clock=clock or FakeClock(),
    )


def ask(request_id: str, prompt: list[int], salt: str = "", **params: Any) -> GenerateRequest:
    return GenerateRequest(
        request_id=request_id,
        prompt_token_ids=prompt,
        params=SamplingParams(**params),
        cache_salt=salt,
    )


def run(core: EngineCore) -> list[TokenOutput]:
    outputs = []
    while core.has_work:
        outputs += core.step().outputs
    return outputs


def tokens_of(outputs: list[TokenOutput], request_id: str, choice_index: int = 0) -> list[int]:
    mine = [o for o in outputs if (o.request_id, o.choice_index) == (request_id, choice_index)]
    assert [o.finish_reason is not None for o in mine] == [False] * (len(mine) - 1) + [True]
    return [token_id for output in mine for token_id in output.token_ids]


@pytest.mark.parametrize(
    ("prompt", "params", "param"),
    [
        ([], {}, "prompt"),
        ([1, VOCAB], {}, "prompt"),
        ([-1, 2], {}, "prompt"),
        ([1], {"logit_bias": {3: 1.0, VOCAB: 1.0}}, "logit_bias"),
        ([1], {"logit_bias": {-1: 1.0}}, "logit_bias"),
        ([1], {"stop_token_ids": (5, VOCAB)}, "stop_token_ids"),
    ],
)
def test_impossible_request_is_refused_by_name(
    prompt: list[int], params: dict[str, Any], param: str
) -> None:
    core = make_core()
    with pytest.raises(InvalidRequest) as caught:
        core.add(ask("a", prompt, **params))
    assert caught.value.param == param
    assert caught.value.fix
    assert not core.has_work
    core.add(ask("a", [1], max_tokens=1))  # the id was not taken


def test_request_id_in_use_is_refused_until_it_ends() -> None:
    core = make_core()
    core.add(ask("a", [1], max_tokens=1))
    with pytest.raises(InvalidRequest, match="in use"):
        core.add(ask("a", [2]))
    run(core)
    core.add(ask("a", [2], max_tokens=1))


def test_too_long_completion_is_refused_with_the_numbers() -> None:
    with pytest.raises(PromptTooLong) as caught:
        make_core().add(ask("a", [1] * 60, max_tokens=5))
    assert caught.value.code == "context_length_exceeded"
    assert caught.value.cause == (
        "This model's maximum context length is 64 tokens. However, you requested 65 tokens "
        "(60 in the messages, 5 in the completion)."
    )
    assert "at most 4 tokens" in caught.value.fix


def test_prompt_that_leaves_no_room_is_refused() -> None:
    with pytest.raises(PromptTooLong, match="your messages resulted in 64 tokens"):
        make_core().add(ask("a", [1] * 64))


def test_longest_possible_request_runs_to_its_end() -> None:
    core = make_core()
    core.add(ask("a", [1] * 60, max_tokens=4))
    assert len(tokens_of(run(core), "a")) == 4


def test_without_max_tokens_the_context_is_filled() -> None:
    core = make_core()
    core.add(ask("a", [1] * 10))
    outputs = run(core)
    assert len(tokens_of(outputs, "a")) == MAX_MODEL_LEN - 10
    assert outputs[-1].finish_reason is FinishReason.LENGTH


def test_pool_smaller_than_the_context_is_the_limit() -> None:
    core = make_core(FakeExecutor(8, 4, vocab_size=VOCAB))
    assert core.snapshot().max_model_len == 32
    with pytest.raises(PromptTooLong, match="bounded by the server's KV cache"):
        core.add(ask("a", [1] * 30, max_tokens=3))
    core.add(ask("a", [1] * 30, max_tokens=2))
    core.add(ask("b", [2] * 30))  # no max_tokens: clipped
    outputs = run(core)
    assert len(tokens_of(outputs, "a")) == 2
    assert len(tokens_of(outputs, "b")) == 2


def test_full_queue_refuses_with_a_time_to_wait() -> None:
    core = make_core(max_num_waiting=3)
    core.add(ask("a", [1], n=2, max_tokens=1))
    core.add(ask("b", [1], max_tokens=1))
    with pytest.raises(Overloaded) as caught:
        core.add(ask("c", [1], max_tokens=1))
    assert caught.value.retry_after_s >= 1
    core.step()
    core.add(ask("c", [1], n=5, max_tokens=1))  # nobody waits: any size is taken


def test_choices_run_under_one_id_and_differ() -> None:
    executor = FakeExecutor(64, 4, vocab_size=VOCAB)
    core = make_core(executor)
    request = ask("a", list(range(10)), n=3, max_tokens=5, seed=7)
    core.add(request)
    outputs = run(core)
    for choice_index in range(3):
        expected = executor.model.generate(request, choice_index, 5, frozenset())
        assert tokens_of(outputs, "a", choice_index) == expected
    assert not core.abort("a")


def test_sequences_without_seed_get_one_each_request() -> None:
    seeds: set[int] = set()

    def note(batch: Batch) -> None:
        seeds.update(s.request.seed for s in batch.requests)

    core = make_core(FakeExecutor(64, 4, vocab_size=VOCAB, on_execute=note))
    for request_id in ("a", "b"):
        core.add(ask(request_id, [1], max_tokens=1))
    core.add(ask("c", [1], max_tokens=1, seed=-5))
    run(core)
    assert len(seeds) == 3
    assert -5 in seeds
    assert all(-(2**63) <= seed < 2**63 for seed in seeds)


def first_draws(num_tokens: int) -> list[int]:
    model = FakeExecutor(1, 1, vocab_size=VOCAB).model
    return model.generate(ask("a", [1, 2, 3]), 0, num_tokens, frozenset())


@pytest.mark.parametrize("kind", ["eos", "stop_token_ids"])
def test_end_token_ends_with_stop_and_is_reported(kind: str) -> None:
    end = first_draws(5)[4]
    core = make_core(eos=frozenset({end} if kind == "eos" else ()))
    core.add(ask("a", [1, 2, 3], stop_token_ids=() if kind == "eos" else (end,)))
    outputs = run(core)
    assert tokens_of(outputs, "a") == first_draws(5)
    assert outputs[-1].finish_reason is FinishReason.STOP


def test_ignore_eos_goes_on_but_own_stop_tokens_still_end() -> None:
    draws = first_draws(9)
    assert draws[4] not in draws[5:]
    assert draws[8] not in draws[:8]
    core = make_core(eos=frozenset({draws[4]}))
    core.add(ask("a", [1, 2, 3], ignore_eos=True, stop_token_ids=(draws[8],)))
    assert tokens_of(run(core), "a") == draws


def test_logprobs_are_passed_on_when_asked_for() -> None:
    core = make_core()
    core.add(ask("a", [1], max_tokens=1, logprobs=0))
    core.add(ask("b", [1], max_tokens=1))
    with_logprobs, without = core.step().outputs
    assert with_logprobs.logprobs is not None
    assert with_logprobs.logprobs[0].token_id == with_logprobs.token_ids[0]
    assert without.logprobs is None


def test_cached_tokens_are_reported_with_each_output() -> None:
    core = make_core()
    for request_id, salt in (("a", ""), ("b", ""), ("c", "tenant")):
        core.add(ask(request_id, list(range(9)), salt, max_tokens=2))
        cached = {output.num_cached_tokens for output in run(core)}
        assert cached == {8 if request_id == "b" else 0}


def test_abort_ends_all_choices_or_just_one() -> None:
    core = make_core()
    core.add(ask("a", [1, 2, 3], n=3, max_tokens=20))
    first = core.step().outputs
    (output,) = core.abort("a", 1)
    assert (output.choice_index, output.index, output.token_ids) == (1, 1, [])
    assert output.finish_reason is FinishReason.ABORT
    assert core.abort("a", 1) == []
    assert [o.choice_index for o in core.abort("a")] == [0, 2]
    assert core.abort("a") == core.abort("never") == []
    snapshot = core.snapshot()
    assert snapshot.num_usable_blocks == snapshot.num_blocks
    assert not core.has_work
    assert len(first) == 3


def test_step_without_work_does_nothing() -> None:
    executor = FakeExecutor(4, 4)
    core = make_core(executor)
    output = core.step()
    assert (output.outputs, output.num_scheduled_tokens, executor.num_steps) == ([], 0, 0)


def test_executor_error_leaves_the_step() -> None:
    def fail(batch: Batch) -> None:
        raise RuntimeError("rank 1 is gone")

    core = make_core(FakeExecutor(4, 4, on_execute=fail))
    core.add(ask("a", [1], max_tokens=1))
    with pytest.raises(RuntimeError, match="rank 1 is gone"):
        core.step()


def test_snapshot_tells_the_state() -> None:
    core = make_core(max_num_seqs=2, max_num_batched_tokens=16)
    for request_id in ("a", "b", "c"):
        core.add(ask(request_id, [ord(request_id)] * 10, max_tokens=3))
    assert core.snapshot().num_queued_prefill_tokens == 30
    step = core.step()
    assert (step.num_scheduled_tokens, step.num_scheduled_requests) == (16, 2)
    snapshot = core.snapshot()
    assert (snapshot.num_running, snapshot.num_waiting) == (2, 1)
    assert snapshot.num_queued_prefill_tokens == 14
    assert snapshot.num_free_blocks == 64 - 3 - 2
    run(core)
    end = core.snapshot()
    assert (end.num_running, end.num_waiting, end.num_queued_prefill_tokens) == (0, 0, 0)
    assert (end.num_prompt_tokens, end.num_generated_tokens) == (30, 9)
    assert (end.block_size, end.num_blocks, end.max_num_seqs) == (4, 64, 2)
    assert end.num_usable_blocks == 64
    assert end.num_evictable_blocks > 0
    assert end.sequence > snapshot.sequence
    assert end.epoch == snapshot.epoch != make_core().snapshot().epoch


def test_step_age_counts_from_work_or_from_the_last_step() -> None:
    clock = FakeClock()
    core = make_core(clock=clock)
    clock.advance(5)
    assert core.snapshot().step_age_s == 0
    core.add(ask("a", [1], max_tokens=2))
    clock.advance(2)
    core.add(ask("b", [1], max_tokens=2))
    assert core.snapshot().step_age_s == 2
    core.step()
    assert core.snapshot().step_age_s == 0
    clock.advance(1)
    assert core.snapshot().step_age_s == 1
    run(core)
    clock.advance(9)
    assert core.snapshot().step_age_s == 0
    core.add(ask("a", [1]))
    clock.advance(1)
    core.abort("a")
    assert core.snapshot().step_age_s == 0


def test_the_first_output_alone_tells_of_queue_and_prefill() -> None:
    clock = FakeClock()

    def work(batch: Batch) -> None:
        clock.advance(1.0)

    executor = FakeExecutor(64, 4, vocab_size=VOCAB, on_execute=work)
    core = make_core(executor, clock=clock, max_num_seqs=1, max_num_batched_tokens=8)
    core.add(ask("a", list(range(20)), max_tokens=3))
    clock.advance(0.5)
    core.add(ask("b", [1], max_tokens=2))
    outputs = run(core)
    told = [(o.request_id, o.index, o.start) for o in outputs if o.start is not None]
    # a: three chunks of its prompt; b waits half a second less than a runs, five steps.
    assert told == [("a", 0, StartTimes(0.5, 3.0)), ("b", 0, StartTimes(5.0, 1.0))]


def test_a_resumed_sequence_tells_of_its_start_here() -> None:
    core = make_core()
    core.add(replace(ask("a", [1, 2], max_tokens=4), emitted=[[5, 6]]))
    assert [(o.index, o.start is not None) for o in run(core)] == [(2, True), (3, False)]


def test_step_time_fit_is_learned_from_the_clock() -> None:
    clock = FakeClock()

    def work(batch: Batch) -> None:
        num_decodes = sum(s.num_scheduled_tokens == 1 for s in batch.requests)
        clock.advance(0.01 + 0.002 * num_decodes + 0.0005 * (batch.num_tokens - num_decodes))

    core = make_core(FakeExecutor(400, 4, vocab_size=VOCAB, on_execute=work), clock=clock)
    for i in range(40):
        core.add(ask(str(i), [i] * (1 + i), max_tokens=2 + i % 9))
        core.step()
    run(core)
    expected = (0.01, 0.002, 0.0005)
    assert core.snapshot().step_time_s == pytest.approx(expected, rel=0.1)


def test_step_time_fit_survives_one_stall_and_stays_positive() -> None:
    fit = StepTimeFit()
    for i in range(400):
        fit.observe(StepWork(i % 50, 3 * (i % 7)), 0.02)
    fit.observe(StepWork(8), 600.0)
    assert fit.predict(StepWork(8)) == pytest.approx(0.02, rel=0.2)
    assert all(coefficient >= 0 for coefficient in fit.coefficients)


def test_shutdown_reaches_the_executor() -> None:
    executor = FakeExecutor(4, 4)
    make_core(executor).shutdown()
    assert executor.is_shut_down
