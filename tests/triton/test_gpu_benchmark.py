"""`make bench-gpu` runs to its end, on a stand-in for a GPU where there is none.

What it says of tiny sizes means nothing; that every part of it says something does.
"""

import importlib.util
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import create_autospec

import pytest
import torch

from engine.compute_threads import caller_unmoved
from tests.benchmarks.gpu.bench import Bench, Ceilings
from tests.benchmarks.gpu.device import CudaDevice, Device, Event
from tests.benchmarks.gpu.peers import measure_vllm
from tests.benchmarks.gpu.sizes import Sizes
from tests.benchmarks.gpu.suite import run
from tests.benchmarks.gpu.throughput import measure_first_token

ROOT = Path(__file__).parents[2]
TINY_MODEL = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "vocab_size": 128,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
}
TINY = Sizes(
    repeats=2,
    copy_bytes=64,
    matmul_size=4,
    cache_bytes=5000,
    max_copies=2,
    num_kv_heads=1,
    group_size=2,
    head_dim=16,
    hidden=32,
    ffn=48,
    vocab_size=64,
    decode_attention=((1, 32), (2, 16)),
    prefill_attention=((1, 32), (2, 16)),
    elementwise_tokens=(3,),
    linear_tokens=(1, 17),
    sample_rows=(2,),
    num_copied_layers=2,
    num_copied_blocks=3,
    models={"tiny": TINY_MODEL},
    compared_model="tiny",
    kv_cache_bytes=1 << 19,
    batches=(1, 2, 512),
    contexts=(16, 64),
    prefills=(16, 64),
    engine_batches=(1, 3),
    num_engine_steps=2,
    prompt_tokens=8,
    workloads=((3, 4),),
    num_peer_requests=2,
    num_peer_tokens=3,
    batching_settings={"num_blocks": 16, "max_batch_tokens": 64},
)

CEILINGS = Ceilings(gb_per_s=1.0, tflop_per_s=1.0)


class ClockEvent:
    """An event of a device that has done everything at once."""

    def __init__(self) -> None:
        self.at = 0.0

    def record(self) -> None:
        self.at = time.perf_counter()

    def elapsed_time(self, end_event: "ClockEvent", /) -> float:
        return max((end_event.at - self.at) * 1e3, 1e-6)


class StandIn:
    """The CPU in place of a GPU."""

    place = torch.device("cpu")
    name = "no GPU"

    def event(self) -> Event:
        return ClockEvent()

    def head_start(self) -> None:
        pass

    def record(self, run: Callable[[], None]) -> Callable[[], object]:
        run()
        return run

    def synchronize(self) -> None:
        pass

    def free(self) -> None:
        pass


@pytest.mark.slow
def test_every_part_has_its_rows(device: torch.device, tmp_path: Path) -> None:
    where: Device = CudaDevice() if device.type == "cuda" else StandIn()
    with caller_unmoved():
        rows = run(where, TINY, tmp_path, [""])
    assert json.loads((tmp_path / "results.json").read_text()) == rows
    batching = "tiny transformers continuous batching"
    # Without psutil it thinks that a CPU has no memory.
    may_fail = set() if importlib.util.find_spec("psutil") else {batching}
    assert {row["what"] for row in rows if "error" in row} <= may_fail
    skipped = [row["what"] for row in rows if "skipped" in row]
    assert skipped == ["tiny decode 512 x 16", "tiny decode 512 x 64", "tiny vLLM"]
    names = {row["what"] for row in rows}
    assert names >= {
        "ceilings",
        "decode attention 2 x 16",
        "prefill attention 2 x 16",
        "rms_norm 3",
        "add_rms_norm 3",
        "silu_and_mul 3",
        "rotate_and_store 3",
        "int4_linear 17",
        "fp8_linear 17",
        "sample 2, top-k and top-p",
        "copy_blocks 3",
        "tiny start",
        "tiny decode 2 x 64",
        "tiny prefill 64",
        "tiny engine step, 3 sequences",
        "tiny engine, 3 requests, 8 in, 4 out",
        "tiny process to first token, kernels cached",
        "tiny transformers generate, SDPA",
        batching,
    }
    num_bars = (tmp_path / "results.svg").read_text().count("<rect") - 1
    assert num_bars == sum("of ceiling" in row for row in rows)


def test_a_part_that_fails_or_comes_too_late_leaves_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_bench: Bench) -> Any:
        raise RuntimeError("out of memory")

    suite = "tests.benchmarks.gpu.suite"
    monkeypatch.setattr(f"{suite}.measure_attention", fail)
    monkeypatch.setattr(f"{suite}.measure_operations", lambda _bench: iter([{"what": "the next"}]))
    rows = run(StandIn(), TINY, tmp_path, ["attention", "operations"])
    assert "out of memory" in next(row["error"] for row in rows if "error" in row)
    assert "the next" in [row["what"] for row in rows]
    monkeypatch.setattr(f"{suite}._LIMIT_S", 0.0)
    rows = run(StandIn(), TINY, tmp_path, ["attention"])
    assert [row["what"] for row in rows if "skipped" in row] == ["attention"]


@pytest.mark.slow
def test_a_process_that_fails_says_why(tmp_path: Path) -> None:
    (row,) = measure_first_token(Bench(StandIn(), TINY, CEILINGS), tmp_path / "nothing")
    assert "nothing" in row["error"]


def test_what_cannot_be_imported_is_named_with_what_to_do(tmp_path: Path) -> None:
    code = """
import runpy, sys
sys.modules["triton"] = None
runpy.run_module("tests.benchmarks.gpu", run_name="__main__")
"""
    command = [sys.executable, "-c", code, "--out", str(tmp_path / "out")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    cause, fix = done.stderr.splitlines()
    assert cause.startswith("The GPU benchmarks need triton")
    assert "install PageRay with its extra gpu" in fix


def test_vllm_is_asked_for_all_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The names are those of vLLM, which is not here."""

    class FakeLLM:
        def __init__(self, _model: str, **_options: Any) -> None:
            pass

        def generate(self, prompts: list[Any], params: Any, use_tqdm: bool) -> list[Any]:
            answer = SimpleNamespace(token_ids=[1] * params.max_tokens)
            return [SimpleNamespace(outputs=[answer]) for _ in prompts]

    vllm: Any = ModuleType("vllm")
    vllm.__spec__ = object()
    vllm.LLM, vllm.SamplingParams, vllm.TokensPrompt = FakeLLM, SimpleNamespace, dict
    monkeypatch.setitem(sys.modules, "vllm", vllm)
    (row,) = measure_vllm(Bench(StandIn(), TINY, CEILINGS), tmp_path)
    assert row["tokens/s"] > 0
    assert "error" not in row


def test_cuda_is_called_as_torch_declares_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "CUDAGraph", "Event", "Stream", "_sleep", "current_stream", "empty_cache",
        "get_device_name", "graph", "graph_pool_handle", "stream", "synchronize",
    ):  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, create_autospec(getattr(torch.cuda, name)))
    cuda = CudaDevice()
    start, end = cuda.event(), cuda.event()
    cuda.head_start()
    start.record()
    runs: list[int] = []
    cuda.record(lambda: runs.append(1))()
    end.record()
    cuda.synchronize()
    start.elapsed_time(end)
    cuda.free()
    assert len(runs) == 2
