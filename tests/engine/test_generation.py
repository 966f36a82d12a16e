"""Offline runs on a fake model: order, stop strings, and what is left behind."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine.batch import Batch
from engine.config import EngineConfig
from engine.core import EngineCore
from engine.errors import Overloaded, PromptTooLong
from engine.generation import GenerationRun
from engine.output import FinishReason
from engine.request import GenerateRequest
from engine.sampling_params import SamplingParams
from tests.engine.toy_tokenizers import byte_level
from tests.fakes import FakeExecutor

TOKENIZER = byte_level()
VOCAB = 256
NUM_BLOCKS = 64


class Setup:
    """A core on the fake model, and the text that a request must give there."""

    def __init__(self, on_execute: Callable[[Batch], None] | None = None, **settings: Any) -> None:
        self.executor = FakeExecutor(NUM_BLOCKS, 4, vocab_size=VOCAB, on_execute=on_execute)
        config = EngineConfig(
            model_path=Path("unused"), model_name="fake", **{"block_size": 4, **settings}
        )
        self.core = EngineCore(
            config,
            self.executor,
            max_model_len=128,
            eos_token_ids=frozenset(),
            vocab_size=VOCAB,
        )

    def expected(self, request: GenerateRequest, choice_index: int = 0) -> list[int]:
        assert request.params.max_tokens is not None
        return self.executor.model.generate(
            request,
            choice_index,
            request.params.max_tokens,
            frozenset(request.params.stop_token_ids),
        )

    def assert_idle(self) -> None:
        snapshot = self.core.snapshot()
        assert not self.core.has_work
        assert snapshot.num_free_blocks + snapshot.num_evictable_blocks == NUM_BLOCKS


def ask(name: str, prompt: list[int], **params: Any) -> GenerateRequest:
    sampling = SamplingParams(**{"max_tokens": 12, "seed": 5, **params})
    return GenerateRequest(request_id=name, prompt_token_ids=prompt, params=sampling)


def test_results_come_in_the_order_of_the_requests_with_all_their_choices() -> None:
    setup = Setup(max_num_seqs=3)
    requests = [ask(str(i), [i, i + 1, 7], max_tokens=20 - i, n=1 + i % 3) for i in range(12)]
    calls: list[tuple[int, int]] = []
    run = GenerationRun(
        setup.core, TOKENIZER, requests, lambda done, total: calls.append((done, total))
    )
    generations = run.run()
    for request, generation in zip(requests, generations, strict=True):
        assert generation.prompt_token_ids == request.prompt_token_ids
        assert len(generation.choices) == request.params.n
        for i, choice in enumerate(generation.choices):
            assert choice.token_ids == setup.expected(request, i)
            assert choice.text == TOKENIZER.decode(choice.token_ids)
            assert choice.finish_reason is FinishReason.LENGTH
            assert choice.logprobs is None
    assert calls == [(i + 1, 12) for i in range(12)]
    setup.assert_idle()


def test_choice_ends_at_its_stop_string_and_the_engine_makes_no_more_of_it() -> None:
    setup = Setup()
    full = ask("full", [1, 2, 3], max_tokens=40, n=2, logprobs=0)
    whole = [TOKENIZER.decode(setup.expected(full, i)) for i in range(2)]
    stop = next(  # found in the first choice only
        whole[0][i : i + 2]
        for i in range(8, 60)
        if whole[0][i : i + 2] not in whole[1] and "\ufffd" not in whole[0][i : i + 2]
    )
    request = ask("cut", [1, 2, 3], max_tokens=40, n=2, logprobs=0, stop=(stop,))
    first, second = GenerationRun(setup.core, TOKENIZER, [request]).run()[0].choices
    assert first.finish_reason is FinishReason.STOP
    assert first.text == whole[0][: whole[0].index(stop)]
    num_tokens = len(first.token_ids)
    assert first.token_ids == setup.expected(full)[:num_tokens]
    assert first.logprobs is not None
    assert [entry.token_id for entry in first.logprobs] == first.token_ids
    assert stop in TOKENIZER.decode(first.token_ids)
    assert stop not in TOKENIZER.decode(first.token_ids[:-1])
    assert second.finish_reason is FinishReason.LENGTH
    assert second.text == whole[1]
    # The prompt once for each choice, the tokens but the last ones, nothing after the stop.
    assert setup.executor.num_computed_tokens == 2 * 3 + num_tokens - 1 + 40 - 1
    setup.assert_idle()


def test_stop_string_in_the_last_token_wins_over_the_length() -> None:
    setup = Setup()
    tokens = setup.expected(ask("a", [4], max_tokens=30))
    texts = [TOKENIZER.decode([token_id]) for token_id in tokens]
    end = next(i for i in range(5, 30) if texts[i].isascii() and texts[i] not in "".join(texts[:i]))
    stop = texts[end]
    request = ask("a", [4], max_tokens=end + 1, stop=(stop,), include_stop=True)
    choice = GenerationRun(setup.core, TOKENIZER, [request]).run()[0].choices[0]
    assert choice.finish_reason is FinishReason.STOP
    assert choice.text.endswith(stop)
    assert choice.token_ids == tokens[: end + 1]


def test_stop_token_is_the_last_of_the_tokens() -> None:
    setup = Setup()
    stop_token_id = setup.expected(ask("a", [9]))[4]
    request = ask("a", [9], stop_token_ids=(stop_token_id,))
    choice = GenerationRun(setup.core, TOKENIZER, [request]).run()[0].choices[0]
    assert choice.finish_reason is FinishReason.STOP
    assert choice.token_ids == setup.expected(request)
    assert choice.token_ids[-1] == stop_token_id


def test_more_prompts_than_may_wait_are_all_answered() -> None:
    setup = Setup(max_num_seqs=2, max_num_waiting=3)
    requests = [ask(str(i), [i % VOCAB]) for i in range(50)]
    generations = GenerationRun(setup.core, TOKENIZER, requests).run()
    assert [g.choices[0].token_ids for g in generations] == [setup.expected(r) for r in requests]


def test_refused_prompt_leaves_no_request_behind() -> None:
    setup = Setup()
    requests = [ask("good", [1, 2]), ask("long", [1] * 500), ask("never added", [3])]
    with pytest.raises(PromptTooLong):
        GenerationRun(setup.core, TOKENIZER, requests).run()
    setup.assert_idle()
    # The core is as good as new.
    generations = GenerationRun(setup.core, TOKENIZER, requests[:1]).run()
    assert generations[0].choices[0].token_ids == setup.expected(requests[0])


@pytest.mark.parametrize("error", [RuntimeError("the model broke"), KeyboardInterrupt()])
def test_error_in_a_step_leaves_no_request_behind(error: BaseException) -> None:
    num_steps = 0

    def fail_at_the_fifth(batch: Batch) -> None:
        nonlocal num_steps
        num_steps += 1
        if num_steps == 5:
            raise error

    setup = Setup(fail_at_the_fifth, max_num_seqs=2)
    requests = [ask(str(i), [i], n=2) for i in range(6)]
    with pytest.raises(type(error)):
        GenerationRun(setup.core, TOKENIZER, requests).run()
    setup.assert_idle()


def test_overload_that_no_step_can_relieve_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(request: GenerateRequest) -> None:
        raise Overloaded("Full.", "Wait.")

    setup = Setup()
    monkeypatch.setattr(setup.core, "add", refuse)
    with pytest.raises(Overloaded):
        GenerationRun(setup.core, TOKENIZER, [ask("a", [1])]).run()


def test_no_prompts_give_no_results() -> None:
    assert GenerationRun(Setup().core, TOKENIZER, []).run() == []
