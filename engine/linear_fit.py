"""Running least squares of a few features, no coefficient below zero. Knows nothing of steps."""

from collections.abc import Sequence

# Weights of older observations sum to 1 / (1 - decay) = 200 observations.
_DECAY = 0.995
# Enough for the fit to settle within some tens of them, because each starts from the last one.
_NUM_SWEEPS = 4


class LinearFit:
    """Fits target = sum of coefficient * feature to what was observed lately."""

    def __init__(self, num_features: int) -> None:
        self.coefficients = [0.0] * num_features
        # Decayed normal equations: _products[i][j] sums x_i * x_j, _targets[i] sums x_i * y.
        self._products = [[0.0] * num_features for _ in range(num_features)]
        self._targets = [0.0] * num_features

    def predict(self, features: Sequence[float]) -> float:
        """Return the target that these features lead to."""
        return sum(map(float.__mul__, self.coefficients, features))

    def observe(self, features: Sequence[float], target: float, weight: float) -> None:
        """Learn from one observation."""
        for i, row in enumerate(self._products):
            feature = features[i] * weight
            for j, other in enumerate(features):
                row[j] = row[j] * _DECAY + feature * other
            self._targets[i] = self._targets[i] * _DECAY + feature * target
        for _ in range(_NUM_SWEEPS):
            self._sweep()

    def forget(self, index: int) -> None:
        """Take back all that was learned of one feature."""
        self.coefficients[index] = self._targets[index] = 0.0
        self._products[index] = [0.0] * len(self._products)
        for row in self._products:
            row[index] = 0.0

    def _sweep(self) -> None:
        """Minimise along each coefficient in turn (coordinate descent), kept at zero or above."""
        for i, row in enumerate(self._products):
            if row[i] > 0:
                gap = (self._targets[i] - sum(map(float.__mul__, row, self.coefficients))) / row[i]
                self.coefficients[i] = max(0.0, self.coefficients[i] + gap)
