"""Everything in one command: `python -m tests.benchmarks.gpu --json FILE`, under nine minutes."""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from tests.benchmarks.gpu.attention import measure_attention
from tests.benchmarks.gpu.figure import draw
from tests.benchmarks.gpu.models import CONFIGS, write_config
from tests.benchmarks.gpu.peers import measure_transformers, measure_vllm
from tests.benchmarks.gpu.steps import measure_steps, measure_throughput
from tests.benchmarks.gpu.timing import measure_ceilings

_LIMIT_S = 480.0
"""No part begins after so long; each takes less than a minute."""

Rows = Iterator[dict[str, Any]]


def main() -> None:
    """Measure, print a row as soon as it is there, and write all of them down."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path, help="SVG file")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("There is no CUDA device here.\nRun this on a machine with one.")
    started = time.perf_counter()
    ceilings = measure_ceilings()
    rows: list[dict[str, Any]] = [
        {
            "what": torch.cuda.get_device_name(),
            "GB/s": ceilings.gb_per_s,
            "TFLOP/s": ceilings.tflop_per_s,
        }
    ]
    _show(rows[0])
    with tempfile.TemporaryDirectory() as folder:
        paths = {name: write_config(Path(folder), name) for name in CONFIGS}
        qwen = paths["Qwen3-0.6B"]
        parts: list[Callable[[], Rows]] = [
            partial(measure_attention, ceilings),
            *(partial(measure_steps, path, ceilings) for path in paths.values()),
            partial(measure_throughput, qwen),
            partial(measure_transformers, qwen),
            partial(measure_vllm, qwen),
        ]
        for part in parts:
            if time.perf_counter() - started > _LIMIT_S:
                rows.append({"what": "the rest", "skipped": f"{_LIMIT_S:g} s are over"})
                break
            try:
                for row in part():
                    rows.append(row)
                    _show(row)
            except Exception as error:  # noqa: BLE001  the other parts are still worth having
                rows.append({"what": "a part failed", "error": repr(error)[:500]})
                _show(rows[-1])
            torch.cuda.empty_cache()
            if options.json:  # after each part: the machine may be taken away
                options.json.write_text(json.dumps(rows, indent=1))
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))
    if options.plot:
        draw(rows, options.plot)


def _show(row: dict[str, Any]) -> None:
    values = (
        f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in row.items()
        if name != "what"
    )
    print(f"{row['what']:<44} {'  '.join(values)}", flush=True)


if __name__ == "__main__":
    main()
