"""Learns how long a step takes from what it computes.

seconds = constant + a * decodes + b * tokens read for them
        + c * prefill tokens + d * query-key pairs + e * tokens read for them + f * block moves,
fitted by least squares of the relative error. Knows nothing of clocks or requests.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

from engine.batch import Batch
from engine.linear_fit import LinearFit

# One step that stalled (a page fault storm, a suspended machine) must not spoil the next 200.
_MAX_SURPRISE = 10.0
_NUM_TRUSTED_STEPS = 20
_MIN_STEP_S = 1e-5
# After so many steps without block moves their price is unknown again. It may have been measured
# in a bad moment, and where it is too high nothing is moved any more that could correct it.
_MOVES_REMEMBERED = 1000
# Their places among the features of prefill.
_MOVES, _MIXED = 3, 4
# Share of the newest step in the running mean of context lengths.
_MEAN_SHARE = 0.05


@dataclass(slots=True)
class StepWork:
    """What a step computes."""

    num_decodes: int = 0
    num_prefill_tokens: int = 0
    num_prefill_pairs: float = 0.0
    """Keys that the prefill tokens look at, summed over them."""
    num_decode_reads: int = 0
    """Tokens whose KV is read for decodes: all that a sequence has, for each."""
    num_prefill_reads: int = 0
    """The same for chunks of prefill: read once for all tokens of a chunk."""
    num_moves: int = 0
    num_lone_tokens: int = 0
    """Of the decodes, tokens of prompts that come alone and are not the last."""

    @property
    def is_mixed(self) -> bool:
        """Whether it is more than decodes, which alone have graphs on a GPU."""
        return self.num_prefill_tokens > 0 or self.num_lone_tokens > 0

    def add_decode(self, num_computed: int) -> None:
        """Add a sequence that decodes behind `num_computed` tokens."""
        self.num_decodes += 1
        self.num_decode_reads += num_computed

    def add_chunk(self, num_tokens: int, num_computed: int) -> None:
        """Add `num_tokens` of prefill behind `num_computed` tokens of the same sequence."""
        self.num_prefill_tokens += num_tokens
        self.num_prefill_pairs += _num_pairs(num_tokens, num_computed)
        self.num_prefill_reads += num_computed

    def decode_features(self) -> tuple[float, float, float]:
        """What the seconds of the decodes, and of any step, are a linear function of."""
        return 1.0, float(self.num_decodes), float(self.num_decode_reads)

    def prefill_features(self) -> tuple[float, float, float, float, float]:
        """What the seconds beyond those are a linear function of."""
        return (
            float(self.num_prefill_tokens),
            self.num_prefill_pairs,
            float(self.num_prefill_reads),
            float(self.num_moves),
            float(self.is_mixed),
        )


class StepTimeFit:
    """Running fit of step time, in two parts.

    Steps of decodes alone teach what decodes take; what other steps take beyond that is laid on
    their prefill and moves. Fitted together the parts would drift into each other: in a long
    stretch of mixed steps they always come together.
    """

    def __init__(self) -> None:
        self._decodes = LinearFit(3)
        self._prefill = LinearFit(5, num_given=3)
        self._num_steps = 0
        self._num_steps_since_move = 0
        self._mean_prefill_context = 0.0
        self._mean_decode_context = 0.0

    @property
    def coefficients(self) -> tuple[float, float, float]:
        """Seconds: constant, per decoding sequence, per prefill token, at their usual contexts."""
        constant, per_decode, per_read = self._decodes.coefficients
        per_decode += per_read * self._mean_decode_context
        per_token, per_pair, *_ = self._prefill.coefficients
        return constant, per_decode, per_token + per_pair * self._mean_prefill_context

    @property
    def move_s(self) -> float:
        """Seconds to move a block; 0 before anything was moved, or long after."""
        return self._prefill.coefficients[_MOVES]

    @property
    def mixed_s(self) -> float:
        """Seconds that prefill adds to a step however short it is: no graph runs such a step."""
        return self._prefill.coefficients[_MIXED]

    def predict(self, work: StepWork) -> float:
        """Return the expected seconds of a step."""
        decode_s = self._decodes.predict(work.decode_features())
        return decode_s + self._prefill.predict(work.prefill_features())

    def prefill_s(self, num_tokens: int, num_computed: int = 0) -> float:
        """Return the seconds that a chunk adds to a step with prefill."""
        per_token, per_pair, per_read, *_ = self._prefill.coefficients
        pairs = _num_pairs(num_tokens, num_computed)
        return per_token * num_tokens + per_pair * pairs + per_read * num_computed

    def tokens_within(self, seconds: float, num_computed: int) -> float:
        """Return how many tokens, behind `num_computed` of them, a chunk of so long has."""
        if math.isinf(seconds):
            return math.inf
        per_token, per_pair, per_read, *_ = self._prefill.coefficients
        per_token += per_pair * num_computed
        seconds = max(0.0, seconds - per_read * num_computed)
        # In this form nothing cancels, however small the share of the pairs is.
        root = math.sqrt(per_token * per_token + 2 * per_pair * seconds)
        return 2 * seconds / (per_token + root) if per_token + root > 0 else math.inf

    def observe(self, work: StepWork, seconds: float) -> None:
        """Learn from one step."""
        if self._num_steps >= _NUM_TRUSTED_STEPS:
            expected = self.predict(work)
            if expected > 0:
                seconds = min(seconds, _MAX_SURPRISE * expected)
        self._num_steps += 1
        self._num_steps_since_move = 0 if work.num_moves else self._num_steps_since_move + 1
        if self._num_steps_since_move == _MOVES_REMEMBERED:
            self._prefill.forget(_MOVES)
        self._observe_contexts(work)
        # A long step must not count for more than a short one of the same relative error.
        weight = max(seconds, _MIN_STEP_S) ** -2
        features = work.decode_features()
        if work.is_mixed or work.num_moves:
            known = self._decodes.coefficients
            self._prefill.observe(work.prefill_features(), seconds, weight, features, known)
        else:
            self._decodes.observe(features, seconds, weight)

    def _observe_contexts(self, work: StepWork) -> None:
        if work.num_prefill_tokens:
            context = work.num_prefill_pairs / work.num_prefill_tokens
            self._mean_prefill_context += _MEAN_SHARE * (context - self._mean_prefill_context)
        if work.num_decodes:
            context = work.num_decode_reads / work.num_decodes
            self._mean_decode_context += _MEAN_SHARE * (context - self._mean_decode_context)


def work_of(batch: Batch) -> StepWork:
    """Return what a batch computes."""
    work = work_of_chunks([s.num_scheduled_tokens for s in batch.requests], batch.starts)
    work.num_moves = len(batch.moves)
    if not work.num_prefill_tokens:
        work.num_lone_tokens = len(batch.requests) - len(batch.wanting)
    return work


def work_of_chunks(lengths: Sequence[int], num_computed: Sequence[int] = ()) -> StepWork:
    """Return the work of a step that computes `lengths` tokens of each sequence.

    Args:
        lengths: 1 is a decode.
        num_computed: tokens that each has computed before; left out, none.
    """
    work = StepWork()
    for length, computed in zip_longest(lengths, num_computed, fillvalue=0):
        if length == 1:
            work.add_decode(computed)
        else:
            work.add_chunk(length, computed)
    return work


def _num_pairs(num_tokens: int, num_computed: int) -> float:
    return num_tokens * (num_computed + 0.5 * num_tokens)
