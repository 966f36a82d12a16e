"""Tells whether one more request can run to its end beside those that run.

What counts is the peak: requests grow by a token a step each and give all back when they end. With
the expected ends known, memory is at its height just before one of them (the idea of Gong et al.,
"Past-Future Scheduler for LLM Serving under SLA Guarantees", ASPLOS 2025). Nothing is reserved: a
forecast that was wrong costs a preemption, not an error.
"""

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate

from engine.output_length import OutputLengths
from engine.request import Request


class KvForecast:
    """Forecasts the need of running requests from the lengths of those that ended.

    Made once for all that would join them: to ask for one more costs little.
    """

    def __init__(
        self,
        requests: Sequence[Request],
        lengths: OutputLengths,
        block_size: int,
        num_usable_blocks: int,
    ) -> None:
        """Prepare for `fits`.

        Args:
            requests: those that run.
            lengths: of those that ended.
            block_size: tokens in a block.
            num_usable_blocks: blocks that nobody holds. When the requests take some of them, this
                forecast stays right.
        """
        self._lengths = lengths
        self._num_blocks = num_usable_blocks
        growth, known = [], []
        for request in requests:
            growth.append(self._growth(request))
            # What others hold as well stays theirs when this one ends.
            num_shared = request.num_shared_blocks
            known.append(-(-request.num_tokens // block_size) - num_shared)
            self._num_blocks += len(request.block_ids) - num_shared
        self._peak = Peak(growth, known, block_size)

    def fits(self, request: Request, num_known_blocks: int) -> bool:
        """Return whether all can go on, with one more.

        Args:
            request: the one more.
            num_known_blocks: what it needs for the tokens it has, without what others hold.
        """
        growth = self._growth(request)
        return self._peak.with_one_more(growth, num_known_blocks) <= self._num_blocks

    def _growth(self, request: Request) -> float:
        return self._lengths.remaining(request.num_output_tokens, request.max_tokens)


class Peak:
    """The most blocks that sequences hold at once until the last has ended."""

    def __init__(self, growth: Sequence[float], known: Sequence[int], block_size: int) -> None:
        """Prepare for `with_one_more`.

        Args:
            growth: tokens that each will still get, one a step.
            known: blocks that each needs for the tokens it has.
            block_size: tokens in a block.
        """
        self._block_size = block_size
        longest_first = sorted(zip(growth, known, strict=True), reverse=True)
        # Just before the i-th longest ends, i + 1 are left and each has grown by its growth.
        blocks = [steps / block_size for steps, _ in longest_first]
        held = list(accumulate((need for _, need in longest_first), initial=0))
        before = [held[i + 1] + (i + 1) * grown for i, grown in enumerate(blocks)]
        beside = [peak + grown for peak, grown in zip(before, blocks, strict=True)]
        self._negated_growth = [-steps for steps, _ in longest_first]
        self._held = held
        self._longer = list(accumulate(before, max, initial=0.0))
        self._shorter = list(accumulate(reversed(beside), max, initial=0.0))[::-1]

    def with_one_more(self, growth: float, known: int) -> float:
        """Return the peak when one more sequence runs beside them."""
        place = bisect_right(self._negated_growth, -growth)
        # While longer ones are left alone, when it ends itself, when shorter ones end before it.
        own = self._held[place] + known + (place + 1) * growth / self._block_size
        return max(self._longer[place], own, known + self._shorter[place])
