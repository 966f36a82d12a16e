"""Learns how long outputs get, to tell how much more a running one will grow.

A histogram of the lengths of outputs that ended, older ones counting less; what is expected of an
output of g tokens is the mean of those that got longer than g. Knows nothing of requests.
"""

import math

# Buckets to a doubling of the length.
_RESOLUTION = 4
_NUM_BUCKETS = 31 * _RESOLUTION + 1
# Weights of older outputs sum to 1 / (1 - decay) = 200 outputs.
_DECAY = 0.995
# What the first requests are taken for.
_PRIOR_TOKENS = 128
# An output longer than all before it goes on for this share of its length.
_EXCESS = 0.5


class OutputLengths:
    """Running estimate of output lengths in tokens."""

    def __init__(self) -> None:
        self._weights = [0.0] * _NUM_BUCKETS
        self._totals = [0.0] * _NUM_BUCKETS
        self._expected: list[float] | None = None
        self.observe(_PRIOR_TOKENS)

    def observe(self, num_tokens: int) -> None:
        """Learn from an output that ended, for whatever reason."""
        self._weights = [weight * _DECAY for weight in self._weights]
        self._totals = [total * _DECAY for total in self._totals]
        bucket = _bucket(num_tokens)
        self._weights[bucket] += 1.0
        self._totals[bucket] += num_tokens
        self._expected = None

    def remaining(self, num_tokens: int, max_tokens: int) -> float:
        """Return how many tokens an output of `num_tokens` is expected to grow by."""
        if self._expected is None:
            self._expected = self._expected_lengths()
        excess = _EXCESS * num_tokens
        expected = self._expected[_bucket(num_tokens)] - num_tokens
        return min(max_tokens - num_tokens, max(1.0, expected if expected > 0 else excess))

    def _expected_lengths(self) -> list[float]:
        """Mean length of the outputs that got beyond each bucket; 0 where there is none."""
        expected = [0.0] * _NUM_BUCKETS
        weight = total = 0.0
        for i in range(_NUM_BUCKETS - 1, -1, -1):
            # Those of the same bucket may be shorter or longer: they count where none is longer.
            near = (weight, total) if weight > 1e-3 else (self._weights[i], self._totals[i])
            expected[i] = near[1] / near[0] if near[0] > 1e-3 else 0.0
            weight += self._weights[i]
            total += self._totals[i]
        return expected


def _bucket(num_tokens: int) -> int:
    return min(_NUM_BUCKETS - 1, int(_RESOLUTION * math.log2(num_tokens + 1)))
