"""The second half of a layer on one rank: its share of the feed-forward network."""

from dataclasses import dataclass

from torch import Tensor

from engine.parallel import TensorParallel
from kernels import ops
from kernels.weights import FeedForwardWeights


@dataclass(frozen=True, slots=True)
class FeedForward:
    """A rank has all inputs of some features, and their inputs of the down matrix."""

    weights: FeedForwardWeights
    group: TensorParallel

    def __call__(self, x: Tensor, residual: Tensor) -> Tensor:
        """Add `x` to `residual` in place, both [tokens, hidden]; return what is to be added next.

        That is [tokens, hidden], the same on every rank.
        """
        return self.group.all_reduce(ops.feed_forward(x, residual, self.weights))
