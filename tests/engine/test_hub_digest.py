"""Files in the hub's cache are checked against the digests that name them."""

import hashlib
from pathlib import Path

import pytest

from engine.errors import InvalidModel
from engine.hub_digest import check_digests

SMALL, LARGE = b'{"a": 1}', bytes(range(256)) * 40_000


@pytest.fixture
def snapshot(tmp_path: Path) -> Path:
    """A snapshot as the hub's client leaves it: links to blobs that are named by their digests."""
    blobs, folder = tmp_path / "blobs", tmp_path / "snapshots" / "abc"
    blobs.mkdir()
    folder.mkdir(parents=True)
    git = "4a036f56bb619924ec4189bd84ed716c766971ae"  # `git hash-object` says so
    for name, data, digest in (
        ("config.json", SMALL, git),
        ("model.safetensors", LARGE, hashlib.sha256(LARGE).hexdigest()),
    ):
        (blobs / digest).write_bytes(data)
        (folder / name).symlink_to(blobs / digest)
    return folder


def test_whole_files_pass_and_all_their_bytes_are_told(snapshot: Path) -> None:
    told: list[tuple[int, int]] = []
    assert check_digests(snapshot, lambda _, done, total: told.append((done, total))) == 2
    assert told[-1] == (len(SMALL) + len(LARGE),) * 2


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_changed_byte_is_found(snapshot: Path, name: str) -> None:
    blob = (snapshot / name).resolve()
    data = bytearray(blob.read_bytes())
    data[-1] ^= 1
    blob.write_bytes(data)
    with pytest.raises(InvalidModel, match=f"{name}' is not what the hub has") as caught:
        check_digests(snapshot, lambda *_: None)
    assert str(blob) in str(caught.value)


def test_of_a_folder_that_is_no_snapshot_nothing_can_be_checked(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(SMALL)
    assert check_digests(tmp_path, lambda *_: None) == 0


def test_what_cannot_be_checked_is_not_taken_for_checked(snapshot: Path) -> None:
    (snapshot / "extra.json").write_bytes(SMALL)  # as where there are no symbolic links
    with pytest.raises(InvalidModel, match=r"extra.json' cannot be checked"):
        check_digests(snapshot, lambda *_: None)
    (snapshot / "extra.json").unlink()
    (snapshot / "config.json").resolve().unlink()
    with pytest.raises(InvalidModel, match=r"config.json' cannot be checked"):
        check_digests(snapshot, lambda *_: None)
