"""Random numbers that depend on nothing but (seed, choice index, position).

No state is kept between draws: a request that is preempted, batched otherwise or moved to another
replica gets the same numbers again, on every platform.

The generator is Philox4x32-10: J. K. Salmon, M. A. Moraes, R. O. Dror, D. E. Shaw, "Parallel random
numbers: as easy as 1, 2, 3", SC 2011. How it is used here is a contract between replicas:

    key       seed as 64-bit two's complement: low word, high word
    counter   position, 0, choice index, 0
    number    words 0 and 1 of the output as in `genrand_res53`: 53 bits, in [0, 1)
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_NUM_ROUNDS = 10
_LOW_WORD = np.uint64(0xFFFFFFFF)
_WORD_BITS = np.uint64(32)
_MULTIPLIERS = np.array([[0xD2511F53], [0xCD9E8D57]], dtype=np.uint64)
_KEY_STEPS = np.array([[0x9E3779B9], [0xBB67AE85]], dtype=np.uint64)


class UniformNumbers:
    """One stream of numbers in [0, 1) for each (seed, choice index)."""

    def __init__(self, seeds: Sequence[int], choice_indices: Sequence[int]) -> None:
        self._round_keys = round_keys(seeds)
        self._choice_indices = np.array(choice_indices, dtype=np.uint64)

    def at(self, positions: Sequence[int]) -> NDArray[np.float64]:
        """Number of each stream at its position: [num_streams] float64."""
        even = np.stack([np.array(positions, dtype=np.uint64), self._choice_indices])
        words = philox4x32(self._round_keys, even, np.zeros_like(even))
        return words_to_uniform(words[0], words[1])


def round_keys(seeds: Sequence[int]) -> NDArray[np.uint64]:
    """Keys of every round: [10, 2, num_streams], low and high word of each."""
    seed = np.array([value & 0xFFFFFFFFFFFFFFFF for value in seeds], dtype=np.uint64)
    key = np.stack([seed & _LOW_WORD, seed >> _WORD_BITS])
    num_steps = np.arange(_NUM_ROUNDS, dtype=np.uint64)[:, None, None]
    keys: NDArray[np.uint64] = (key + num_steps * _KEY_STEPS) & _LOW_WORD
    return keys


def philox4x32(
    keys: NDArray[np.uint64], even: NDArray[np.uint64], odd: NDArray[np.uint64]
) -> tuple[NDArray[np.uint64], ...]:
    """Encrypt counters.

    Args:
        keys: what `round_keys` made, [10, 2, num_streams].
        even: counter words 0 and 2, [2, num_streams], each below 2**32.
        odd: counter words 1 and 3, likewise.

    Returns the four output words, each [num_streams].
    """
    for key in keys:
        product = even * _MULTIPLIERS
        even = (product >> _WORD_BITS)[::-1] ^ odd ^ key
        odd = (product & _LOW_WORD)[::-1]
    return even[0], odd[0], even[1], odd[1]


def words_to_uniform(high: NDArray[np.uint64], low: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Make 53-bit fractions in [0, 1) of pairs of 32-bit words."""
    mantissa = ((high >> np.uint64(5)) << np.uint64(26)) | (low >> np.uint64(6))
    return mantissa.astype(np.float64) * 2.0**-53
