"""Embedding and output matrix, split over the ranks of a group.

Each rank has some of the vocabulary, padded to divide evenly.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812  the name everybody knows
from torch import Tensor

from engine.parallel import TensorParallel
from kernels import ops
from kernels.weights import LinearWeight


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
