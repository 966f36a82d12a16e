"""Memory stays flat however many requests pass through an engine."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.oracle import make_checkpoint

# A leak of 1 KiB a request is eight times as much. What is left over is the allocator's.
MAX_BYTES_PER_REQUEST = 128


def bytes_per_request(*folder: str) -> float:
    pytest.importorskip("psutil", reason="psutil is not installed here")
    command = [sys.executable, "-m", "tests.engine.memory_growth", *folder]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return float(done.stdout)


@pytest.mark.slow
def test_memory_is_flat_over_twenty_thousand_requests() -> None:
    assert bytes_per_request() < MAX_BYTES_PER_REQUEST


@pytest.mark.slow
def test_memory_is_flat_with_a_real_model(tmp_path: Path) -> None:
    widths = {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 4}
    folder = make_checkpoint(tmp_path, "llama", num_hidden_layers=1, **widths)
    assert bytes_per_request(str(folder)) < MAX_BYTES_PER_REQUEST
