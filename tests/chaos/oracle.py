"""Compare what a client got under faults with the answer of the undisturbed cluster.

Exact: text, tokens and their log probabilities, reasons to end, usage. Knows no time and no fault.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from tests.chaos.answer import Answer, Choice

SHOWN = 40
"""Characters or tokens shown before and after the first difference."""


class Verdict(StrEnum):
    """What an answer is."""

    OK = "ok"
    LOST = "lost"
    """It has no end, or an error for one."""
    WRONG = "wrong"
    """It is not the answer, or no valid one."""
    DUPLICATED = "duplicated"
    """A part of it came twice."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """A verdict and why."""

    verdict: Verdict
    reason: str = ""


OK = Judgement(Verdict.OK)


def judge(answer: Answer, expected: Answer | None) -> Judgement:
    """Judge an answer. `expected` is None for a request whose answer is another every time."""
    for check in (_repeats, _breaks, _disorders):
        found = check(answer, expected)
        if found is not None:
            return found
    for usage in answer.usages:
        cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
        if not 0 <= cached <= usage["prompt_tokens"]:
            return Judgement(Verdict.WRONG, f"{cached} cached tokens in a prompt of {usage}")
    if expected is None:
        return _valid(answer) or OK
    for index, wanted in expected.choices.items():
        found = _compare(f"choice {index}", answer.choices[index], wanted)
        if found is not None:
            return found
    if _usage(answer) != _usage(expected):
        return Judgement(Verdict.WRONG, f"usage is {_usage(answer)}, expected {_usage(expected)}")
    return OK


def _repeats(answer: Answer, expected: Answer | None) -> Judgement | None:
    for index, choice in answer.choices.items():
        if len(choice.finish_reasons) > 1 or choice.num_openings > 1:
            return Judgement(
                Verdict.DUPLICATED,
                f"choice {index} opened {choice.num_openings} times and ended with "
                f"{choice.finish_reasons}",
            )
    if answer.num_done > 1 or len(answer.usages) > 1:
        return Judgement(
            Verdict.DUPLICATED, f"[DONE] {answer.num_done} times, usage {len(answer.usages)} times"
        )
    return None


def _breaks(answer: Answer, expected: Answer | None) -> Judgement | None:
    """Whether it has no end; what came before has to be right all the same."""
    request = answer.request
    why = answer.error or answer.cut
    if not why:
        missing = [
            str(index)
            for index in range(request.num_choices)
            if not answer.choices[index].finish_reasons
        ]
        if missing:
            why = f"no end of choice {', '.join(missing)}"
        elif request.streams and not answer.num_done:
            why = "no [DONE]"
        elif request.has_usage and not answer.usages:
            why = "no usage"
    if not why:
        return None
    if expected is not None:
        for index, wanted in expected.choices.items():
            choice = answer.choices[index]
            for what, got, whole in (
                ("text", choice.text, wanted.text),
                ("tokens", choice.logprobs, wanted.logprobs),
            ):
                if got != whole[: len(got)]:
                    return _differs(f"choice {index}: {what} before it broke ({why})", got, whole)
    return Judgement(Verdict.LOST, why)


def _disorders(answer: Answer, expected: Answer | None) -> Judgement | None:
    found = list(answer.disorders)
    unknown = answer.choices.keys() - set(range(answer.request.num_choices))
    if unknown:
        found.append(f"choices {sorted(unknown)} that nobody asked for")
    if answer.request.is_chat and answer.request.streams:
        found += [
            f"choice {i} has no role" for i, c in answer.choices.items() if not c.num_openings
        ]
    return Judgement(Verdict.WRONG, "; ".join(found[:3])) if found else None


def _compare(name: str, got: Choice, wanted: Choice) -> Judgement | None:
    if got.text != wanted.text:
        return _differs(f"{name}: text", got.text, wanted.text)
    if got.logprobs != wanted.logprobs:
        return _differs(f"{name}: tokens", got.logprobs, wanted.logprobs)
    if got.finish_reasons != wanted.finish_reasons:
        return Judgement(
            Verdict.WRONG,
            f"{name}: ended with {got.finish_reasons}, expected {wanted.finish_reasons}",
        )
    return None


def _differs(what: str, got: Sequence[Any], wanted: Sequence[Any]) -> Judgement:
    begin = _common(got, wanted)
    # A part that came twice: all of what is wanted is there, and more.
    rest = _common(got[begin:][::-1], wanted[::-1])
    is_repeat = begin + rest >= len(wanted)
    first = max(begin - SHOWN, 0)
    return Judgement(
        Verdict.DUPLICATED if is_repeat else Verdict.WRONG,
        f"{what}: {len(got)} where {len(wanted)} are expected, equal up to {begin}\n"
        f"  got      {got[first : begin + SHOWN]!r}\n"
        f"  expected {wanted[first : begin + SHOWN]!r}",
    )


def _common(one: Sequence[Any], other: Sequence[Any]) -> int:
    """Length of the common beginning."""
    count = 0
    for left, right in zip(one, other, strict=False):
        if left != right:
            break
        count += 1
    return count


def _usage(answer: Answer) -> list[tuple[int, int, int]]:
    """Tokens, without those found in a cache: that depends on what came before."""
    names = ("prompt_tokens", "completion_tokens", "total_tokens")
    return [tuple(usage[name] for name in names) for usage in answer.usages]


def _valid(answer: Answer) -> Judgement | None:
    """Whether it holds together, for want of an answer to compare it with."""
    request = answer.request
    for index, choice in answer.choices.items():
        [reason] = choice.finish_reasons
        if reason not in {"stop", "length"}:
            return Judgement(Verdict.WRONG, f"choice {index} ended with {reason!r}")
        if request.has_logprobs and len(choice.logprobs) > request.max_tokens:
            return Judgement(
                Verdict.DUPLICATED, f"choice {index} has {len(choice.logprobs)} tokens"
            )
        if (
            request.has_logprobs
            and reason == "length"
            and len(choice.logprobs) != request.max_tokens
        ):
            return Judgement(
                Verdict.WRONG,
                f"choice {index} has {len(choice.logprobs)} tokens of {request.max_tokens}",
            )
    num_tokens = sum(len(choice.logprobs) for choice in answer.choices.values())
    for _, completion_tokens, _ in _usage(answer):
        if request.has_logprobs and completion_tokens != num_tokens:
            return Judgement(
                Verdict.WRONG, f"usage counts {completion_tokens} tokens, {num_tokens} came"
            )
    return None
