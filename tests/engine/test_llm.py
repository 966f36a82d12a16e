"""The offline API on the real model."""

import math
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine import LLM, SamplingParams
from engine.errors import InvalidConfig, InvalidRequest, ModelNotFound, PromptTooLong
from engine.output import FinishReason

pytestmark = pytest.mark.slow

GREEDY = SamplingParams(temperature=0, max_tokens=8)


@pytest.fixture(scope="module")
def llm(smollm2_path: Path) -> Iterator[LLM]:
    # One thread: those that wait for each other on a busy machine take many times as long.
    with LLM(
        smollm2_path, dtype="float32", kv_cache_bytes=64 << 20, max_num_seqs=16, num_threads=1
    ) as model:
        yield model


def test_chat_knows_the_capital_of_france(llm: LLM) -> None:
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    choice = llm.chat(messages, SamplingParams(temperature=0, max_tokens=32))[0].choices[0]
    assert "Paris" in choice.text
    assert choice.finish_reason is FinishReason.STOP
    assert llm.chat([messages, messages], GREEDY)[1].choices[0].text in choice.text


def test_prompts_may_be_text_or_tokens_and_results_keep_their_order(llm: LLM) -> None:
    prompts = ["1, 2, 3, 4, 5,", "The sun rises in the", "a b c d e f g"]
    expected = [llm.generate(prompt, GREEDY)[0] for prompt in prompts]
    assert expected[0].choices[0].text.startswith(" 6, 7")
    assert llm.generate(prompts, [GREEDY] * 3) == expected
    assert llm.generate([llm.tokenizer.encode(p) for p in prompts], GREEDY) == expected


def test_seeded_choices_are_the_same_alone_and_in_company(llm: LLM) -> None:
    params = SamplingParams(seed=3, max_tokens=12, n=3, top_p=0.9, ignore_eos=True)
    alone = llm.generate("Once upon a time", params)[0]
    texts = [choice.text for choice in alone.choices]
    assert len(set(texts)) == 3
    others = [SamplingParams(max_tokens=i + 1) for i in range(6)]
    together = llm.generate(["Once upon a time"] + ["Other text"] * 6, [params, *others])
    assert [choice.text for choice in together[0].choices] == texts


def test_stop_string_ends_the_text_across_tokens(llm: LLM) -> None:
    params = SamplingParams(temperature=0, max_tokens=40, stop=("8, 9",))
    choice = llm.generate("1, 2, 3, 4, 5,", params)[0].choices[0]
    assert choice.text == " 6, 7, "
    assert choice.finish_reason is FinishReason.STOP
    kept = SamplingParams(temperature=0, max_tokens=40, stop=("8, 9",), include_stop=True)
    assert llm.generate("1, 2, 3, 4, 5,", kept)[0].choices[0].text == " 6, 7, 8, 9"


def test_logprobs_come_with_every_token(llm: LLM) -> None:
    params = SamplingParams(temperature=0, max_tokens=5, logprobs=3)
    choice = llm.generate("The sun rises in the", params)[0].choices[0]
    assert choice.logprobs is not None
    assert [entry.token_id for entry in choice.logprobs] == choice.token_ids
    for entry in choice.logprobs:
        assert entry.top[0] == (entry.token_id, entry.logprob)
        assert len(entry.top) == 3
        assert sum(math.exp(logprob) for _, logprob in entry.top) <= 1


def test_invalid_prompt_is_refused_and_the_model_stays_usable(llm: LLM) -> None:
    with pytest.raises(PromptTooLong):
        llm.generate([[5] * 10, [5] * 100_000], GREEDY)
    with pytest.raises(InvalidRequest, match="3 params"):
        llm.generate(["a", "b"], [GREEDY] * 3)
    assert llm.generate("1, 2, 3, 4, 5,", GREEDY)[0].choices[0].text.startswith(" 6, 7")


def test_progress_counts_the_prompts(llm: LLM) -> None:
    calls: list[tuple[int, int]] = []
    llm.generate(["a", "b", "c"], GREEDY, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(1, 3), (2, 3), (3, 3)]


def test_more_ranks_than_one_are_refused_before_anything_is_loaded() -> None:
    with pytest.raises(InvalidConfig, match="pageray serve"):
        LLM("no such model", tensor_parallel_size=2)


def test_unknown_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound):
        LLM("no such model", cache_dir=tmp_path)


def test_closed_model_refuses_work(smollm2_path: Path) -> None:
    model = LLM(smollm2_path, kv_cache_bytes=16 << 20, max_model_len=256, max_num_batched_tokens=64)
    model.close()
    model.close()
    with pytest.raises(RuntimeError, match="closed"):
        model.generate("a")
