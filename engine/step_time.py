"""Learns how long a step takes from what it computes.

seconds = constant + a * decoding sequences + b * prefill tokens, fitted by least squares over
about the last 200 steps, no coefficient below zero. Knows nothing of clocks or requests.
"""

# Weights of older steps sum to 1 / (1 - decay) = 200 steps.
_DECAY = 0.995
# Enough for the fit to settle within some tens of steps, because each starts from the last one.
_NUM_SWEEPS = 4
# One step that stalled (a page fault storm, a suspended machine) must not spoil the next 200.
_MAX_SURPRISE = 10.0
_NUM_TRUSTED_STEPS = 20


class StepTimeFit:
    """Running fit of step time."""

    def __init__(self) -> None:
        # Decayed normal equations: _products[i][j] sums x_i * x_j, _targets[i] sums x_i * y.
        self._products = [[0.0] * 3 for _ in range(3)]
        self._targets = [0.0] * 3
        self._coefficients = [0.0] * 3
        self._num_steps = 0

    @property
    def coefficients(self) -> tuple[float, float, float]:
        """Seconds: constant, per decoding sequence, per prefill token."""
        constant, per_sequence, per_token = self._coefficients
        return constant, per_sequence, per_token

    def predict(self, num_decodes: int, num_prefill_tokens: int) -> float:
        """Return the expected seconds of a step."""
        constant, per_sequence, per_token = self._coefficients
        return constant + per_sequence * num_decodes + per_token * num_prefill_tokens

    def observe(self, num_decodes: int, num_prefill_tokens: int, seconds: float) -> None:
        """Learn from one step."""
        if self._num_steps >= _NUM_TRUSTED_STEPS:
            expected = self.predict(num_decodes, num_prefill_tokens)
            if expected > 0:
                seconds = min(seconds, _MAX_SURPRISE * expected)
        self._num_steps += 1
        features = (1.0, float(num_decodes), float(num_prefill_tokens))
        for i, row in enumerate(self._products):
            feature = features[i]
            for j in range(3):
                row[j] = row[j] * _DECAY + feature * features[j]
            self._targets[i] = self._targets[i] * _DECAY + feature * seconds
        for _ in range(_NUM_SWEEPS):
            self._sweep()

    def _sweep(self) -> None:
        """Minimise along each coefficient in turn (coordinate descent), kept at zero or above."""
        coefficients = self._coefficients
        for i, row in enumerate(self._products):
            if row[i] > 0:
                fitted = sum(a * b for a, b in zip(row, coefficients, strict=True))
                gap = (self._targets[i] - fitted) / row[i]
                coefficients[i] = max(0.0, coefficients[i] + gap)
