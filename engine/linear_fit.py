"""Running least squares of a few features, no coefficient below zero. Knows nothing of steps."""

from collections.abc import Sequence

# Weights of older observations sum to 1 / (1 - decay) = 200 observations.
_DECAY = 0.995
# Enough for the fit to settle within some tens of them, because each starts from the last one.
_NUM_SWEEPS = 4


class LinearFit:
    """Fits target = sum of coefficient * feature to what was observed lately.

    Some more features may have coefficients that are given, by whoever learns them elsewhere. What
    was observed before counts by what is given now.
    """

    def __init__(self, num_features: int, num_given: int = 0) -> None:
        self.coefficients = [0.0] * num_features
        self._given = [0.0] * num_given
        self._given_products = [[0.0] * num_given for _ in range(num_features)]
        # Decayed normal equations: _products[i][j] sums x_i * x_j, _targets[i] sums x_i * y.
        self._products = [[0.0] * num_features for _ in range(num_features)]
        self._targets = [0.0] * num_features

    def predict(self, features: Sequence[float]) -> float:
        """Return the target that these features lead to."""
        return _dot(self.coefficients, features)

    def observe(
        self,
        features: Sequence[float],
        target: float,
        weight: float,
        given_features: Sequence[float] = (),
        given: Sequence[float] = (),
    ) -> None:
        """Learn from one observation."""
        self._given[:] = given
        for i, row in enumerate(self._products):
            feature = features[i] * weight
            _add(row, feature, features)
            _add(self._given_products[i], feature, given_features)
            self._targets[i] = self._targets[i] * _DECAY + feature * target
        for _ in range(_NUM_SWEEPS):
            self._sweep()

    def forget(self, index: int) -> None:
        """Take back all that was learned of one feature."""
        self.coefficients[index] = self._targets[index] = 0.0
        self._products[index] = [0.0] * len(self._products)
        self._given_products[index] = [0.0] * len(self._given)
        for row in self._products:
            row[index] = 0.0

    def _sweep(self) -> None:
        """Minimise along each coefficient in turn (coordinate descent), kept at zero or above."""
        for i, row in enumerate(self._products):
            if row[i] > 0:
                left = self._targets[i] - _dot(self._given_products[i], self._given)
                gap = (left - _dot(row, self.coefficients)) / row[i]
                self.coefficients[i] = max(0.0, self.coefficients[i] + gap)


def _add(row: list[float], feature: float, others: Sequence[float]) -> None:
    for j, other in enumerate(others):
        row[j] = row[j] * _DECAY + feature * other


def _dot(left: Sequence[float], right: Sequence[float]) -> float:
    return sum(map(float.__mul__, left, right))
