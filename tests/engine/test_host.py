"""What is left of the machine, and of the container in it."""

import os
from pathlib import Path

import pytest

from engine.host import available_cores, available_host_bytes


def write(folder: Path, **files: str) -> Path:
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("_", ".")).write_text(content)
    return folder


def test_available_memory_is_the_lesser_of_machine_and_container(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 9000 kB\nMemAvailable:    4000 kB\n")
    free_container = write(tmp_path / "free", memory_max="max\n", memory_current="5\n")
    full_container = write(
        tmp_path / "full",
        memory_max="2000000\n",
        memory_current="1900000\n",
        memory_stat="anon 7\ninactive_file 400000\n",
    )

    assert available_host_bytes(meminfo, tmp_path / "none") == 4_096_000
    assert available_host_bytes(meminfo, free_container) == 4_096_000
    assert available_host_bytes(meminfo, full_container) == 500_000


def test_available_memory_of_this_machine_is_plausible() -> None:
    assert 0 < available_host_bytes() < 1 << 50
    assert available_host_bytes(Path("/nowhere"), Path("/nowhere")) > 0


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        (None, 8),
        ("max 100000", 8),
        ("250000 100000", 2),
        ("50000 100000", 1),
        ("99999999 100000", 8),
    ],
)
def test_cores_are_those_of_the_machine_within_the_containers_quota(
    limit: str | None, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    if limit is not None:
        (tmp_path / "cpu.max").write_text(f"{limit}\n")

    assert available_cores(tmp_path) == expected
