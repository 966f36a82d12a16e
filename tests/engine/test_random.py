"""Random numbers: the published vectors, and what a number may depend on."""

import numpy as np
import pytest

from engine.random import UniformNumbers, philox4x32, round_keys, words_to_uniform

# From kat_vectors of the Random123 distribution, lines "philox4x32 10".
KNOWN_ANSWERS = [
    ([0, 0, 0, 0], [0, 0], [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        [0xA4093822, 0x299F31D0],
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ),
]


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN_ANSWERS)
def test_generator_gives_the_published_answers(
    counter: list[int], key: list[int], answer: list[int]
) -> None:
    keys = round_keys([key[0] | key[1] << 32])
    even = np.array([[counter[0]], [counter[2]]], dtype=np.uint64)
    odd = np.array([[counter[1]], [counter[3]]], dtype=np.uint64)
    assert [int(word[0]) for word in philox4x32(keys, even, odd)] == answer


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
