"""Tells whether one more request can run to its end beside those that run.

What counts is the peak: requests grow by a token a step each and give all back when they end. With
the expected ends known, memory is at its height just before one of them (the idea of Gong et al.,
"Past-Future Scheduler for LLM Serving under SLA Guarantees", ASPLOS 2025). Nothing is reserved: a
forecast that was wrong costs a preemption, not an error.
"""

from collections.abc import Sequence

import numpy as np

from engine.output_length import OutputLengths
from engine.request import Request


class KvForecast:
    """Forecasts the need of running requests from the lengths of those that ended."""

    def __init__(self, lengths: OutputLengths, block_size: int) -> None:
        self._lengths = lengths
        self._block_size = block_size

    def fits(self, requests: Sequence[Request], num_usable_blocks: int) -> bool:
        """Return whether the requests, each with the blocks it holds by now, can all go on.

        Args:
            requests: those that run and the one that would.
            num_usable_blocks: blocks that nobody holds.
        """
        growth, known, held = [], [], 0
        size = self._block_size
        for request in requests:
            num_outputs = request.num_output_tokens
            growth.append(self._lengths.remaining(num_outputs, request.max_tokens))
            # What others hold as well stays theirs when this one ends.
            known.append(-(-request.num_tokens // size) - request.num_shared_blocks)
            held += len(request.block_ids) - request.num_shared_blocks
        return peak_blocks(growth, known, size) <= num_usable_blocks + held


def peak_blocks(growth: Sequence[float], known: Sequence[int], block_size: int) -> float:
    """Return the most blocks that sequences hold at once until the last has ended.

    Args:
        growth: tokens that each will still get, one a step.
        known: blocks that each needs for the tokens it has.
        block_size: tokens in a block.
    """
    steps = np.asarray(growth)
    order = np.argsort(-steps, kind="stable")
    steps = steps[order]
    held = np.cumsum(np.asarray(known)[order])
    # At the end of the i-th longest, i + 1 are left and each has grown by its number of steps.
    return float(np.max(held + np.arange(1, len(steps) + 1) * (steps / block_size)))
