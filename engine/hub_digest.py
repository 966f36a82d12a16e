"""Checks fetched files against what the Hugging Face hub said they are.

The hub's cache names every blob by the hub's entity tag: the SHA-256 of a file in large-file
storage, and git's own digest (SHA-1 of a header and the content) of any other. See "Manage
huggingface_hub cache-system" in its documentation; so no network is needed.
"""

import hashlib
from pathlib import Path
from typing import Any, Final

from engine.errors import InvalidModel
from engine.progress import Report

_CHUNK_BYTES: Final = 1 << 22
_SHA256_CHARS: Final = 64
_GIT_CHARS: Final = 40
_SNAPSHOTS: Final = "snapshots"
"""Folder in which the hub's cache keeps the files of a model by revision."""


def check_digests(folder: Path, report: Report) -> int:
    """Read every file of a hub model and return how many were checked.

    Args:
        folder: a snapshot in the hub's cache; of another folder nothing can be checked.
        report: called as `report(phase, done, total)`, in bytes.

    Raises InvalidModel when a file is not what the hub said, or nobody can tell.
    """
    if folder.parent.name != _SNAPSHOTS:
        return 0
    blobs = {path: path.resolve() for path in sorted(folder.iterdir())}
    for path, blob in blobs.items():
        if not (blob.is_file() and _is_digest(blob.name)):
            raise InvalidModel(
                f"'{path}' cannot be checked: it is no link to a blob with the hub's digest.",
                "Keep the hub's cache on a file system with symbolic links.",
            )
    total = sum(blob.stat().st_size for blob in blobs.values())
    done = 0
    for path, blob in blobs.items():
        digest = _new_digest(blob)
        with blob.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
                done += len(chunk)
                report(f"Checking {folder.parents[1].name}", done, total)
        if digest.hexdigest() != blob.name:
            raise InvalidModel(
                f"'{path}' is not what the hub has: its digest is {digest.hexdigest()}, "
                f"and should be {blob.name}.",
                f"Delete '{blob}' and pull the model again.",
            )
    return len(blobs)


def _is_digest(name: str) -> bool:
    is_hex = all(character in "0123456789abcdef" for character in name)
    return is_hex and len(name) in {_SHA256_CHARS, _GIT_CHARS}


def _new_digest(blob: Path) -> Any:
    if len(blob.name) == _SHA256_CHARS:
        return hashlib.sha256()
    header = f"blob {blob.stat().st_size}\0".encode()
    return hashlib.sha1(header, usedforsecurity=False)
