"""Asking for huge pages changes nothing but the pages."""

import re
from pathlib import Path

import pytest
import torch

from kernels.huge_pages import prefer_huge_pages

SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def test_the_tensor_stays_what_it_is() -> None:
    for size in (0, 1, 5000, 3 << 20):
        tensor = torch.empty(size)
        assert prefer_huge_pages(tensor) is tensor
        tensor.fill_(3)
        assert bool((tensor == 3).all())


@pytest.mark.skipif(
    not SETTING.exists() or "[never]" in SETTING.read_text(), reason="Linux gives no huge pages"
)
def test_memory_that_was_asked_for_is_marked() -> None:
    tensor = prefer_huge_pages(torch.empty(16 << 20))
    middle = tensor.data_ptr() + tensor.nbytes // 2

    assert "hg" in flags_of(middle)


def flags_of(address: int) -> list[str]:
    """The kernel's flags of the mapping that holds an address."""
    is_in = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        bounds = re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line)
        if bounds is not None:
            is_in = int(bounds[1], 16) <= address < int(bounds[2], 16)
        elif is_in and line.startswith("VmFlags:"):
            return line.split()[1:]
    raise AssertionError("no such mapping")
