"""Random numbers that depend on nothing but (seed, choice index, position).

No state is kept between draws: a request that is preempted, batched otherwise or moved to another
replica gets the same numbers again, on every platform.

The generator is Philox4x32-10 (kernels/philox.py). How it is used here is a contract between
replicas:

    key       seed as 64-bit two's complement: low word, high word
    counter   position, 0, choice index, 0; the last word is 1 in kernels/sampling_reference.py
    number    words 0 and 1 of the output as in `genrand_res53`: 53 bits, in [0, 1)
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from kernels.philox import philox4x32, round_keys


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


def words_to_uniform(high: NDArray[np.uint64], low: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Make 53-bit fractions in [0, 1) of pairs of 32-bit words."""
    mantissa = ((high >> np.uint64(5)) << np.uint64(26)) | (low >> np.uint64(6))
    return mantissa.astype(np.float64) * 2.0**-53
