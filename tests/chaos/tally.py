"""Count what came of a run, and say it in one line.

Pure: outcomes of requests, faults with their times, and what was left in the end.
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import pairwise

from tests.chaos.answer import Answer
from tests.chaos.books import Leaks
from tests.chaos.load import Outcome
from tests.chaos.oracle import Verdict
from tests.chaos.strike import Blow

MAX_SHOWN = 20
"""Failures that are told in full."""


class Fate(StrEnum):
    """What became of a request; a verdict, or excused."""

    OK = "ok"
    EXCUSED = "excused"
    """Its frontend was killed, or the way to it, and what had come before was right."""
    LOST = "lost"
    WRONG = "wrong"
    DUPLICATED = "duplicated"


@dataclass(frozen=True, slots=True)
class Tally:
    """A run in numbers."""

    outcomes: Sequence[Outcome]
    blows: Sequence[Blow]
    leaks: Leaks = field(default_factory=Leaks)

    def fate(self, outcome: Outcome) -> Fate:
        """What became of one request."""
        if outcome.judgement.verdict is Verdict.LOST and self._is_excused(outcome):
            return Fate.EXCUSED
        return Fate(outcome.judgement.verdict.value)

    @property
    def fates(self) -> Counter[Fate]:
        """Requests by what became of them."""
        return Counter(map(self.fate, self.outcomes))

    @property
    def is_clean(self) -> bool:
        """Whether every client of a living frontend got its answer, and nothing is left over."""
        fates = self.fates
        failed = fates[Fate.LOST] + fates[Fate.WRONG] + fates[Fate.DUPLICATED]
        return not failed and not self.leaks and fates[Fate.OK] > 0

    def gaps_s(self, blow: Blow | None = None) -> list[float]:
        """Of each stream that a fault moved to another replica: its longest silence after it.

        Sorted; of one fault, or of all. In seconds.
        """
        return sorted(
            gap
            for outcome in self.outcomes
            for gap, each in self._silences(outcome)
            if blow is None or each is blow
        )

    def _silences(self, outcome: Outcome) -> list[tuple[float, Blow]]:
        """One for each time that it moved: the longest that there are."""
        found = [
            (gap, blow) for blow in self.blows if (gap := gap_s(outcome.answer, blow)) is not None
        ]
        found.sort(key=lambda silence: silence[0], reverse=True)
        return found[: (outcome.num_attempts or 1) - 1]

    def line(self) -> str:
        """All of it."""
        fates = self.fates
        gaps_s = self.gaps_s()
        kinds = Counter(blow.kind.value for blow in self.blows)
        moved = sum((outcome.num_attempts or 1) > 1 for outcome in self.outcomes)
        parts = [
            f"{len(self.outcomes)} requests",
            *(f"{fates[fate]} {fate}" for fate in Fate),
            f"{moved} moved",
            f"{len(self.blows)} faults ({', '.join(f'{n} {kind}' for kind, n in kinds.items())})",
            f"{self.leaks.num_used_blocks} blocks leaked",
            f"{self.leaks.num_requests} requests left",
            f"{self.leaks.num_placed_requests} ledger entries left",
            f"gap p50 {_percentile(gaps_s, 0.5)} p99 {_percentile(gaps_s, 0.99)}",
        ]
        if self.leaks.problem:
            parts.append(self.leaks.problem)
        return ", ".join(parts)

    def blow_line(self, blow: Blow) -> str:
        """One fault and the silence that it made."""
        gaps_s = self.gaps_s(blow)
        mended = "never" if blow.mended_s is None else f"{blow.mended_s - blow.struck_s:.1f} s"
        return (
            f"{blow.kind.value} ({blow.victim}): whole after {mended}, {len(gaps_s)} moved, "
            f"gap p50 {_percentile(gaps_s, 0.5)} p99 {_percentile(gaps_s, 0.99)}"
        )

    def failures(self) -> list[str]:
        """Each request that failed, with all that there is to know; the first of many."""
        told = []
        for outcome in self.outcomes:
            fate = self.fate(outcome)
            if fate not in {Fate.OK, Fate.EXCUSED}:
                told.append(self._describe(outcome, fate))
        if len(told) > MAX_SHOWN:
            told[MAX_SHOWN:] = [f"... and {len(told) - MAX_SHOWN} more"]
        return told

    def _describe(self, outcome: Outcome, fate: Fate) -> str:
        answer = outcome.answer
        before = [
            f"  {blow.kind.value} ({blow.victim}) {blow.struck_s - answer.started_s:+.2f} s after "
            f"its start"
            for blow in self.blows
            if answer.started_s - 10 < blow.struck_s < answer.ended_s
        ]
        return "\n".join(
            [
                f"{fate}: {answer.request.name} {answer.id or 'without an id'} at {outcome.url}, "
                f"{answer.ended_s - answer.started_s:.2f} s, {len(answer.token_times_s)} events, "
                f"attempts: {outcome.num_attempts}",
                f"  {outcome.judgement.reason}",
                *before,
                f"  body {json.dumps(_shortened(answer.request.body))}",
            ]
        )

    def _is_excused(self, outcome: Outcome) -> bool:
        answer = outcome.answer
        return bool(answer.cut) and any(
            blow.kind.excuses_clients
            and (not outcome.is_direct or outcome.url in blow.lost_urls)
            and blow.struck_s <= answer.ended_s
            and (blow.mended_s is None or answer.started_s <= blow.mended_s)
            for blow in self.blows
        )


def gap_s(answer: Answer, blow: Blow) -> float | None:
    """The longest silence of a stream that a fault may have made; None: it was not streaming."""
    times = answer.token_times_s
    if not times or not times[0] < blow.struck_s < times[-1]:
        return None
    return max(
        later - earlier
        for earlier, later in pairwise(times)
        if later > blow.struck_s and (blow.mended_s is None or earlier < blow.mended_s)
    )


def _percentile(values: Sequence[float], share: float) -> str:
    if not values:
        return "-"
    return f"{values[min(int(share * len(values)), len(values) - 1)]:.2f} s"


def _shortened(body: dict[str, object]) -> dict[str, object]:
    prompt = body.get("prompt")
    if isinstance(prompt, list) and len(prompt) > 8:
        return {**body, "prompt": [*prompt[:8], f"... {len(prompt)} in all"]}
    return body
