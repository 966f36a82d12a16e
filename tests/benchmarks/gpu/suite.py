"""Measures one part after another, and writes down what each of them finds."""

import json
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
import triton

from tests.benchmarks.gpu.attention import measure_attention
from tests.benchmarks.gpu.bench import Bench, Row, Rows
from tests.benchmarks.gpu.device import Device
from tests.benchmarks.gpu.figure import draw
from tests.benchmarks.gpu.models import write_config
from tests.benchmarks.gpu.operations import measure_operations
from tests.benchmarks.gpu.peers import measure_transformers, measure_vllm
from tests.benchmarks.gpu.sizes import Sizes
from tests.benchmarks.gpu.steps import measure_steps
from tests.benchmarks.gpu.throughput import measure_first_token, measure_throughput

_LIMIT_S = 480.0
"""No part begins after so long; each takes less than a minute."""


def run(device: Device, sizes: Sizes, out: Path, only: Sequence[str]) -> list[Row]:
    """Measure the parts named, print a row as soon as it is there, and write all of them down."""
    started = time.perf_counter()
    out.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    versions = {"torch": torch.__version__, "triton": triton.__version__}
    _add(rows, {"what": device.name, **versions, "at": time.strftime("%Y-%m-%d %H:%M")})
    bench = Bench.start(device, sizes)
    rates = bench.ceilings
    _add(rows, {"what": "ceilings", "GB/s": rates.gb_per_s, "TFLOP/s": rates.tflop_per_s})
    with tempfile.TemporaryDirectory() as folder:
        for name, part in _parts(bench, Path(folder)).items():
            if not any(word in name for word in only):
                continue
            if time.perf_counter() - started > _LIMIT_S:
                _add(rows, {"what": name, "skipped": f"{_LIMIT_S:g} s are over"})
                continue
            _run_part(rows, name, part)
            device.free()
            _write(rows, out)  # after each part: the machine may be taken away
    _add(rows, {"what": "all of this", "s": time.perf_counter() - started})
    _write(rows, out)
    return rows


def _parts(bench: Bench, folder: Path) -> dict[str, Callable[[], Rows]]:
    """Return what there is to measure, what matters most first."""
    paths = {name: write_config(folder, name, own) for name, own in bench.sizes.models.items()}
    compared = paths[bench.sizes.compared_model]
    return {
        "attention": partial(measure_attention, bench),
        "operations": partial(measure_operations, bench),
        **{f"steps of {name}": partial(measure_steps, bench, paths[name]) for name in paths},
        "throughput": partial(measure_throughput, bench, compared),
        "first token": partial(measure_first_token, bench, compared),
        "transformers": partial(measure_transformers, bench, compared),
        "vllm": partial(measure_vllm, bench, compared),
    }


def _run_part(rows: list[Row], name: str, part: Callable[[], Rows]) -> None:
    started = time.perf_counter()
    try:
        for row in part():
            _add(rows, row)
    except Exception as error:  # noqa: BLE001  the other parts are still worth having
        _add(rows, {"what": f"{name} failed", "error": repr(error)[:500]})
    _add(rows, {"what": f"all of {name}", "s": time.perf_counter() - started})


def _add(rows: list[Row], row: Row) -> None:
    rows.append(row)
    values = (
        f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in row.items()
        if name != "what"
    )
    print(f"{row['what']:<52} {'  '.join(values)}", flush=True)


def _write(rows: Sequence[Row], out: Path) -> None:
    (out / "results.json").write_text(json.dumps(rows, indent=1))
    draw(rows, out / "results.svg")
