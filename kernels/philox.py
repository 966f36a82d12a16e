"""Philox4x32-10, a counter-based generator of random numbers, in numpy.

J. K. Salmon, M. A. Moraes, R. O. Dror, D. E. Shaw, "Parallel random numbers: as easy as 1, 2, 3",
SC 2011. It is a cipher: four counter words encrypted under a key give four random words, so every
draw has its own numbers and no state is kept.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_NUM_ROUNDS = 10
_LOW_WORD = np.uint64(0xFFFFFFFF)
_WORD_BITS = np.uint64(32)
_MULTIPLIERS = np.array([[0xD2511F53], [0xCD9E8D57]], dtype=np.uint64)
_KEY_STEPS = np.array([[0x9E3779B9], [0xBB67AE85]], dtype=np.uint64)


def round_keys(seeds: Sequence[int]) -> NDArray[np.uint64]:
    """Keys of every round: [10, 2, num_streams], low and high word of each.

    A seed is a key as 64-bit two's complement: low word, high word.
    """
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
