"""Which sizes of decode step have a graph of their own, and when another one is worth recording.

A start records few sizes, the largest first, so that it is quick; a step of any other size runs by
the graph of the next larger one. A size that comes often gets its own while requests are served,
between two steps. Knows nothing of tensors: ranks that run the same steps choose alike.
"""

from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Iterable
from typing import Self

# What a step loses by its padding is small: hundreds of them make up for a recording, which takes
# as long as some tens of steps.
_NUM_MISSES = 128
# Running requests wait while one is recorded, so not for one after the other.
_NUM_STEPS_APART = 64


class GraphSizes:
    """Chooses the graph of each step of decodes. Owned by one `DecodeGraphs`."""

    def __init__(
        self,
        sizes: Iterable[int],
        first: Iterable[int],
        *,
        num_misses: int = _NUM_MISSES,
        num_steps_apart: int = _NUM_STEPS_APART,
    ) -> None:
        """Begin with `first` recorded.

        Args:
            sizes: rows of the steps that may have a graph.
            first: those that have one from the start, the largest of `sizes` among them.
            num_misses: steps that make do with a larger graph before theirs is recorded.
            num_steps_apart: fewest steps from one recording to the next.
        """
        self._sizes = sorted(sizes)
        self._recorded = sorted(first)
        assert self._recorded[-1] == self._sizes[-1], "some steps would have no graph"
        assert set(self._recorded) <= set(self._sizes)
        self._num_misses = num_misses
        self._num_steps_apart = num_steps_apart
        self._misses: Counter[int] = Counter()
        self._num_steps_since = num_steps_apart

    @classmethod
    def up_to(cls, max_num_seqs: int) -> Self:
        """Return the sizes for steps of at most so many decodes.

        They lie 8 apart and then 16; below 8 are powers of two. A start records the powers of two
        and the largest: no step is padded to twice its rows, and no kernel is left to be compiled
        while requests wait, as their tiles change at powers of two alone.
        """
        sizes = {1, 2, 4, *range(8, 65, 8), *range(64, max_num_seqs, 16), max_num_seqs}
        sizes = {size for size in sizes if size <= max_num_seqs}
        return cls(sizes, {size for size in sizes if size & (size - 1) == 0} | {max_num_seqs})

    @property
    def largest(self) -> int:
        """Most rows of a step that has a graph."""
        return self._sizes[-1]

    @property
    def recorded(self) -> list[int]:
        """Sizes that have a graph, or are chosen to get one, the largest first."""
        return self._recorded[::-1]

    def choose(self, num_rows: int) -> int:
        """Return the size of the graph that runs the next step; if it is new, record it before.

        At most one becomes new in a step. `num_rows` is at most `largest`.
        """
        size = self._sizes[bisect_left(self._sizes, num_rows)]
        best = self._recorded[bisect_left(self._recorded, size)]
        self._num_steps_since += 1
        if best == size:
            return size
        self._misses[size] += 1
        if self._misses[size] <= self._num_misses or self._num_steps_since < self._num_steps_apart:
            return best
        self._num_steps_since = 0
        insort(self._recorded, size)
        return size
