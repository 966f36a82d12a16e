"""Random numbers: what they are for ever, and what a number may depend on."""

import numpy as np
import pytest

from engine.random import UniformNumbers, words_to_uniform


def test_numbers_are_the_same_for_ever() -> None:
    # Replicas of different versions share requests: these values must never change.
    numbers = UniformNumbers([0, 0, 0, 1, -1, 2**63 - 1], [0, 0, 1, 0, 0, 127])
    assert numbers.at([0, 1, 0, 0, 0, 10_000]).tolist() == [
        0.39904647231489565,
        0.9722412032044762,
        0.5166791672979152,
        0.8902591757080309,
        0.447822034978262,
        0.16130281886333186,
    ]


def test_number_depends_on_its_own_stream_alone() -> None:
    seeds, choices, positions = [5, -7, 2**62, 5, 5], [0, 3, 127, 1, 0], [0, 9, 4000, 0, 1]
    together = UniformNumbers(seeds, choices).at(positions)
    alone = [
        UniformNumbers([seed], [choice]).at([position])[0]
        for seed, choice, position in zip(seeds, choices, positions, strict=True)
    ]
    assert together.tolist() == alone
    assert len(set(alone)) == len(alone)


def test_numbers_stay_below_one() -> None:
    top = np.array([0xFFFFFFFF], dtype=np.uint64)
    assert words_to_uniform(top, top)[0] == 1 - 2.0**-53
    assert words_to_uniform(0 * top, 0 * top)[0] == 0


@pytest.mark.parametrize("axis", ["seed", "choice_index", "position"])
def test_numbers_are_uniform_along_every_axis(axis: str) -> None:
    count = 20_000
    ramp, zeros = list(range(count)), [0] * count
    numbers = UniformNumbers(
        ramp if axis == "seed" else zeros, ramp if axis == "choice_index" else zeros
    ).at(ramp if axis == "position" else zeros)
    histogram, _ = np.histogram(numbers, bins=100, range=(0, 1))
    chi_square = float(((histogram - count / 100) ** 2 / (count / 100)).sum())
    assert 55 < chi_square < 155  # 99 degrees of freedom: 0.02 % on either side
    assert abs(float(np.corrcoef(numbers[:-1], numbers[1:])[0, 1])) < 0.03
