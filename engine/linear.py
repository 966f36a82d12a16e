"""Matrices split over the ranks of a group.

columns   each rank has some of the outputs and needs all of the inputs; nothing is exchanged
rows      each rank has some of the inputs; the sum over ranks is the result
vocab     each rank has some of the vocabulary, padded to divide evenly
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812  the name everybody knows
from torch import Tensor

from engine.parallel import TensorParallel
from kernels import ops
from kernels.weights import LinearWeight


@dataclass(frozen=True, slots=True)
class ColumnParallelLinear:
    """This rank's outputs of a matrix."""

    weight: LinearWeight

    def __call__(self, x: Tensor) -> Tensor:
        """Map [tokens, in] to [tokens, out / size]."""
        return ops.linear(x, self.weight)


@dataclass(frozen=True, slots=True)
class RowParallelLinear:
    """This rank's inputs of a matrix. Rank 0 alone holds the bias, so that it counts once."""

    weight: LinearWeight
    group: TensorParallel

    def __call__(self, x: Tensor) -> Tensor:
        """Map [tokens, in / size] to [tokens, out], the same on every rank."""
        return self.group.all_reduce(ops.linear(x, self.weight))


@dataclass(frozen=True, slots=True)
class VocabParallelEmbedding:
    """This rank's rows of the embedding: tokens `first_id` and up."""

    weight: Tensor
    """[padded vocabulary / size, hidden], as stored: looked up first, converted then"""
    dtype: torch.dtype
    first_id: int
    group: TensorParallel

    def __call__(self, token_ids: Tensor) -> Tensor:
        """Look up token ids [tokens], int32 or int64: [tokens, hidden], the same on every rank."""
        if self.group.size == 1:
            return F.embedding(token_ids, self.weight).to(self.dtype)
        local_ids = token_ids - self.first_id
        is_elsewhere = (local_ids < 0) | (local_ids >= len(self.weight))
        vectors = F.embedding(local_ids.masked_fill_(is_elsewhere, 0), self.weight).to(self.dtype)
        return self.group.all_reduce(vectors.masked_fill_(is_elsewhere[:, None], 0))


@dataclass(frozen=True, slots=True)
class VocabParallelHead:
    """This rank's rows of the output matrix."""

    weight: LinearWeight
    vocab_size: int
    group: TensorParallel

    def __call__(self, x: Tensor) -> Tensor | None:
        """Map [rows, hidden] to logits [rows, vocab_size] on rank 0, None elsewhere."""
        logits = self.group.gather_to_first(ops.linear(x, self.weight))
        return None if logits is None else logits[:, : self.vocab_size]
