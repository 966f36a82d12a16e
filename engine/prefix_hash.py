"""Names KV blocks by their content: a hash chain over the token ids of full blocks.

The engine files the blocks it computed under these names and the router looks prompts up by
them, so both must make the same bytes of the same tokens: nothing here depends on the process,
the machine or the block pool.
"""

import hashlib
import struct
from collections.abc import Sequence

HASH_BYTES = 16


def root_hash(model_name: str, cache_salt: str = "") -> bytes:
    """Return the start of every chain of one model and one salt."""
    digest = hashlib.blake2b(digest_size=HASH_BYTES)
    for text in (model_name, cache_salt):
        data = text.encode()
        # The length keeps ("ab", "c") apart from ("a", "bc").
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.digest()


def block_hashes(
    parent: bytes, token_ids: Sequence[int], block_size: int, first_block: int = 0
) -> list[bytes]:
    """Return the hashes of the full blocks of `token_ids` from `first_block` on.

    Args:
        parent: the hash of the block before `first_block`, or the root hash.
        token_ids: the whole sequence, ids below 2**31.
        block_size: tokens in a block; a partial last block has no hash.
        first_block: index of the first block to hash; those before it are not read.
    """
    first_token = first_block * block_size
    num_tokens = (len(token_ids) - first_token) // block_size * block_size
    data = memoryview(
        struct.pack(f"<{num_tokens}i", *token_ids[first_token : first_token + num_tokens])
    )
    num_bytes = 4 * block_size
    hashes = []
    for start in range(0, len(data), num_bytes):
        digest = hashlib.blake2b(parent, digest_size=HASH_BYTES)
        digest.update(data[start : start + num_bytes])
        parent = digest.digest()
        hashes.append(parent)
    return hashes
