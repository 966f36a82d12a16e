"""The token drawn last for each running sequence, where the next step finds it unread."""

import torch
from torch import Tensor

from engine.parallel import TensorParallel


class LatestTokens:
    """One token for each row of the block tables, the same on every rank of a group."""

    def __init__(self, group: TensorParallel, num_rows: int, device: torch.device) -> None:
        self._group = group
        self._token_ids = torch.zeros(num_rows, dtype=torch.int32, device=device)

    def fill(self, token_ids: Tensor, rows: Tensor) -> Tensor:
        """Return token ids [num_tokens] int32 with those below 0 replaced by the latest.

        Args:
            token_ids: [num_tokens] int32.
            rows: of the sequences they belong to, [num_tokens] int32.
        """
        latest = self._token_ids.index_select(0, rows)
        # Below 0 after logits that were not finite; the host will find out.
        return torch.where(token_ids < 0, latest.clamp(min=0), token_ids)

    def keep(self, rows: Tensor, token_ids: Tensor | None) -> None:
        """Keep what was drawn.

        Args:
            rows: of the sequences it was drawn for, [num_rows] int32.
            token_ids: [num_rows] int32; None on ranks other than 0, which get it from there.
        """
        if token_ids is None:
            token_ids = torch.empty_like(rows)
        self._token_ids[rows.long()] = self._group.share(token_ids)
