"""Makes the step of decodes that follows on one whose tokens are not known yet."""

from engine.batch import Batch
from engine.block_pool import BlockPool
from engine.block_tables import BlockTables
from engine.request import RequestStatus


def next_decodes(batch: Batch, tables: BlockTables, pool: BlockPool) -> Batch | None:
    """Return it, with the blocks it needs allocated.

    None: nobody goes on, or there are not blocks enough. Those that a stop token ends will have
    been computed in vain.

    Args:
        batch: decodes, submitted and not applied.
        tables: of its requests.
        pool: of their blocks.
    """
    going_on = [
        scheduled
        for scheduled in batch.requests
        if scheduled.request.status is RequestStatus.RUNNING
        and scheduled.request.num_output_tokens + 1 < scheduled.request.max_tokens
    ]
    growing = [
        scheduled.request
        for scheduled in going_on
        if scheduled.request.num_tokens == len(scheduled.request.block_ids) * pool.block_size
    ]
    if not going_on or len(growing) > pool.num_usable_blocks:
        return None
    for request in growing:
        tables.grow(request, request.num_tokens + 1)
    return Batch(going_on, pool.take_moves(), is_ahead=True)
