"""The running fit against one that is written down as the formula."""

import random
from collections.abc import Sequence

import numpy as np
import pytest

from engine.linear_fit import LinearFit

DECAY, NUM_SWEEPS = 0.995, 4


class Oracle:
    """Decayed normal equations, then always as many sweeps."""

    def __init__(self, num_features: int, num_given: int) -> None:
        self.coefficients = np.zeros(num_features)
        self.products = np.zeros((num_features, num_features + num_given))
        self.targets = np.zeros(num_features)

    def observe(
        self,
        features: Sequence[float],
        target: float,
        weight: float,
        given_features: Sequence[float],
        given: Sequence[float],
    ) -> None:
        scaled = weight * np.array(features)
        self.products *= DECAY
        self.products += np.outer(scaled, [*features, *given_features])
        self.targets *= DECAY
        self.targets += scaled * target
        for _ in range(NUM_SWEEPS):
            for i, row in enumerate(self.products):
                if row[i] > 0:
                    gap = self.targets[i] - row @ [*self.coefficients, *given]
                    self.coefficients[i] = max(0.0, self.coefficients[i] + gap / row[i])


@pytest.mark.parametrize("num_given", [0, 2])
@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_the_fit_is_that_of_the_formula_settled_or_not(num_given: int, noise: float) -> None:
    rng = random.Random(num_given)
    fit, oracle = LinearFit(3, num_given), Oracle(3, num_given)
    given = [0.5, 2.0][:num_given]
    for step in range(400):
        # The last feature is never there for a while, and has no equation then.
        features = [1.0, rng.uniform(0.0, 5.0), rng.uniform(0.0, 3.0) * (step > 100)]
        given_features = [rng.uniform(0.0, 2.0) for _ in given]
        target = 2.0 * features[0] + 0.7 * features[1] + 0.3 * features[2]
        target += sum(a * b for a, b in zip(given, given_features, strict=True))
        target *= rng.uniform(1.0 - noise, 1.0 + noise)
        for one in (fit, oracle):
            one.observe(features, target, target**-2, given_features, given)
        assert fit.coefficients == pytest.approx(oracle.coefficients, rel=1e-9, abs=1e-12)
    if not noise:
        assert fit.coefficients == pytest.approx([2.0, 0.7, 0.3], rel=1e-3)
