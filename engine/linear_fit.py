"""Running least squares of a few features, no coefficient below zero. Knows nothing of steps."""

from collections.abc import Sequence
from operator import mul

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
        self._num_given = num_given
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
        equations = []
        for i, value in enumerate(features):
            feature = value * weight
            row = self._products[i] = _sums(self._products[i], feature, features)
            left = self._targets[i] = self._targets[i] * _DECAY + feature * target
            if self._num_given:
                known = _sums(self._given_products[i], feature, given_features)
                self._given_products[i] = known
                left -= _dot(known, given)
            if row[i] > 0:
                equations.append((i, row, left))
        for _ in range(_NUM_SWEEPS):
            before = self.coefficients.copy()
            self._sweep(equations)
            if self.coefficients == before:
                return  # it has settled: another sweep would do the same

    def forget(self, index: int) -> None:
        """Take back all that was learned of one feature."""
        self.coefficients[index] = self._targets[index] = 0.0
        self._products[index] = [0.0] * len(self._products)
        self._given_products[index] = [0.0] * self._num_given
        for row in self._products:
            row[index] = 0.0

    def _sweep(self, equations: Sequence[tuple[int, Sequence[float], float]]) -> None:
        """Minimise along each coefficient in turn (coordinate descent), kept at zero or above."""
        coefficients = self.coefficients
        for i, row, left in equations:
            value = coefficients[i] + (left - sum(map(mul, row, coefficients))) / row[i]
            coefficients[i] = value if value > 0.0 else 0.0


def _sums(row: Sequence[float], feature: float, others: Sequence[float]) -> list[float]:
    # To check the lengths as well would take a third more.
    return [old * _DECAY + feature * other for old, other in zip(row, others, strict=False)]


def _dot(left: Sequence[float], right: Sequence[float]) -> float:
    total: float = sum(map(mul, left, right))
    return total
