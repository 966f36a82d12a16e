"""Learns how long a step takes from what it computes.

seconds = constant + a * decodes + b * prefill tokens + c * query-key pairs of the prefill
+ d * tokens whose KV is read + e * block moves, fitted by least squares of the relative error over
about the last 200 steps, no coefficient below zero. Knows nothing of clocks or requests.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

# Weights of older steps sum to 1 / (1 - decay) = 200 steps.
_DECAY = 0.995
# Enough for the fit to settle within some tens of steps, because each starts from the last one.
_NUM_SWEEPS = 4
# One step that stalled (a page fault storm, a suspended machine) must not spoil the next 200.
_MAX_SURPRISE = 10.0
_NUM_TRUSTED_STEPS = 20
_MIN_STEP_S = 1e-5
# After so many steps without block moves their price is unknown again. It may have been measured
# in a bad moment, and where it is too high nothing is moved any more that could correct it.
_MOVES_REMEMBERED = 1000
_NUM_FEATURES = 6
_CONSTANT, _DECODES, _TOKENS, _PAIRS, _READS, _MOVES = range(_NUM_FEATURES)
# Share of the newest step in the running mean of context lengths.
_MEAN_SHARE = 0.05
# The same for how much longer chunks beside decodes take than the fit says, and its bounds.
_EXCESS_SHARE = 0.1
_MAX_EXCESS = 4.0


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

    def add_decode(self, num_computed: int) -> None:
        """Add a sequence that decodes behind `num_computed` tokens."""
        self.num_decodes += 1
        self.num_decode_reads += num_computed

    def add_chunk(self, num_tokens: int, num_computed: int) -> None:
        """Add `num_tokens` of prefill behind `num_computed` tokens of the same sequence."""
        self.num_prefill_tokens += num_tokens
        self.num_prefill_pairs += _num_pairs(num_tokens, num_computed)
        self.num_prefill_reads += num_computed

    def features(self) -> tuple[float, ...]:
        """What the seconds are a linear function of."""
        return (
            1.0,
            float(self.num_decodes),
            float(self.num_prefill_tokens),
            self.num_prefill_pairs,
            float(self.num_decode_reads + self.num_prefill_reads),
            float(self.num_moves),
        )


class StepTimeFit:
    """Running fit of step time."""

    def __init__(self) -> None:
        # Decayed normal equations: _products[i][j] sums x_i * x_j, _targets[i] sums x_i * y.
        self._products = [[0.0] * _NUM_FEATURES for _ in range(_NUM_FEATURES)]
        self._targets = [0.0] * _NUM_FEATURES
        self._coefficients = [0.0] * _NUM_FEATURES
        self._num_steps = 0
        self._num_steps_since_move = 0
        self._chunk_excess = 1.0
        self._mean_prefill_context = 0.0
        self._mean_decode_context = 0.0

    @property
    def coefficients(self) -> tuple[float, float, float]:
        """Seconds: constant, per decoding sequence, per prefill token, at their usual contexts."""
        constant, per_decode, per_token, per_pair, per_read, _ = self._coefficients
        per_decode += per_read * self._mean_decode_context
        return constant, per_decode, per_token + per_pair * self._mean_prefill_context

    @property
    def move_s(self) -> float:
        """Seconds to move a block; 0 before anything was moved, or long after."""
        return self._coefficients[_MOVES]

    def predict(self, work: StepWork) -> float:
        """Return the expected seconds of a step."""
        return sum(map(float.__mul__, self._coefficients, work.features()))

    def prefill_s(self, num_tokens: int, num_computed: int = 0) -> float:
        """Return the seconds that a chunk adds to a step."""
        _, _, per_token, per_pair, per_read, _ = self._coefficients
        pairs = _num_pairs(num_tokens, num_computed)
        return per_token * num_tokens + per_pair * pairs + per_read * num_computed

    def tokens_within(self, seconds: float, num_computed: int) -> float:
        """Return how many tokens, behind `num_computed` of them, a chunk of so long has."""
        if math.isinf(seconds):
            return math.inf
        seconds /= self._chunk_excess
        per_token = self._coefficients[_TOKENS] + self._coefficients[_PAIRS] * num_computed
        seconds = max(0.0, seconds - self._coefficients[_READS] * num_computed)
        # In this form nothing cancels, however small the share of the pairs is.
        root = math.sqrt(per_token * per_token + 2 * self._coefficients[_PAIRS] * seconds)
        return 2 * seconds / (per_token + root) if per_token + root > 0 else math.inf

    def observe(self, work: StepWork, seconds: float) -> None:
        """Learn from one step."""
        if self._num_steps >= _NUM_TRUSTED_STEPS:
            expected = self.predict(work)
            if expected > 0:
                seconds = min(seconds, _MAX_SURPRISE * expected)
        self._num_steps += 1
        self._observe_chunk(work, seconds)
        self._num_steps_since_move = 0 if work.num_moves else self._num_steps_since_move + 1
        if self._num_steps_since_move == _MOVES_REMEMBERED:
            self._forget_moves()
        if work.num_prefill_tokens:
            context = work.num_prefill_pairs / work.num_prefill_tokens
            self._mean_prefill_context += _MEAN_SHARE * (context - self._mean_prefill_context)
        if work.num_decodes:
            context = work.num_decode_reads / work.num_decodes
            self._mean_decode_context += _MEAN_SHARE * (context - self._mean_decode_context)
        # A long step must not count for more than a short one of the same relative error.
        weight = max(seconds, _MIN_STEP_S) ** -2
        features = work.features()
        for i, row in enumerate(self._products):
            feature = features[i] * weight
            for j in range(_NUM_FEATURES):
                row[j] = row[j] * _DECAY + feature * features[j]
            self._targets[i] = self._targets[i] * _DECAY + feature * seconds
        for _ in range(_NUM_SWEEPS):
            self._sweep()

    def _observe_chunk(self, work: StepWork, seconds: float) -> None:
        """Learn by how much the fit is wrong for chunks beside decodes.

        The fit is a plane through all kinds of steps; here it has to be right near one of them.
        """
        if not work.num_decodes or not work.num_prefill_tokens:
            return
        decodes = StepWork(work.num_decodes, num_decode_reads=work.num_decode_reads)
        decode_s = self.predict(decodes)
        chunk_s = self.predict(work) - decode_s
        if chunk_s > 0:
            excess = min(max((seconds - decode_s) / chunk_s, 1 / _MAX_EXCESS), _MAX_EXCESS)
            self._chunk_excess += _EXCESS_SHARE * (excess - self._chunk_excess)

    def _forget_moves(self) -> None:
        self._coefficients[_MOVES] = self._targets[_MOVES] = 0.0
        self._products[_MOVES] = [0.0] * len(self._products)
        for row in self._products:
            row[_MOVES] = 0.0

    def _sweep(self) -> None:
        """Minimise along each coefficient in turn (coordinate descent), kept at zero or above."""
        coefficients = self._coefficients
        for i, row in enumerate(self._products):
            if row[i] > 0:
                fitted = sum(map(float.__mul__, row, coefficients))
                gap = (self._targets[i] - fitted) / row[i]
                coefficients[i] = max(0.0, coefficients[i] + gap)


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
