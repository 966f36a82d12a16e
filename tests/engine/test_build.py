"""What building an engine tells, and what it refuses."""

from pathlib import Path

import pytest
import torch

from engine import device
from engine.build import build_engine
from engine.config import Preset
from engine.device import choose_device, choose_dtype, set_num_threads
from engine.errors import InvalidConfig, InvalidModel
from engine.model_config import ModelConfig
from engine.parallel import TensorParallel
from kernels import native_library
from tests.engine.generation import small_config
from tests.oracle import make_checkpoint


def padded(num_outputs: int) -> int:
    """Outputs of a packed matrix: the compiled kernels take whole panels."""
    library = native_library.find_native_library()
    panel = 1 if library is None else 2 * library.num_lanes()
    return -(-num_outputs // panel) * panel


def test_the_report_tells_the_plan_and_the_phases(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, "llama-tied")
    progress: list[tuple[str, int, int]] = []

    built = build_engine(
        small_config(folder, max_model_len=100),
        TensorParallel.single(),
        lambda *event: progress.append(event),
    )

    memory = built.report.memory
    assert list(built.report.phase_s) == [
        "read config",
        "load weights",
        "allocate KV cache",
        "warm up",
    ]
    assert all(seconds > 0 for seconds in built.report.phase_s.values())
    assert memory.num_blocks == (4 << 20) // memory.block_bytes
    assert memory.kv_cache_bytes == memory.num_blocks * memory.block_bytes
    assert memory.max_model_len == 100
    # Embedding and packed head, then three layers, and seven norms with what follows from them.
    layer = 48 * (padded(48 + 2 * 16) + padded(48) + padded(2 * 72)) + 72 * padded(48)
    norms = 7 * (2 * 48 + 1)
    assert memory.weight_bytes == 4 * (48 * (131 + padded(131)) + 3 * layer + norms)
    assert (built.report.device, built.report.dtype) == ("cpu", "float32")
    assert progress == [("load weights", i, 3) for i in (1, 2, 3)]
    assert built.core.snapshot().num_blocks == memory.num_blocks
    built.core.shutdown()


@pytest.mark.parametrize(
    ("changes", "error", "cause"),
    [
        ({"kv_cache_bytes": 100}, InvalidConfig, "KV cache has room"),
        ({"max_model_len": 1000}, InvalidConfig, "made for 256"),
        ({"kv_cache_bytes": 40 * 1536, "max_model_len": 200}, InvalidConfig, "holds 160 tokens"),
        ({"tensor_parallel_size": 2}, InvalidConfig, "1 ranks, the settings say 2"),
        ({"device": "tpu"}, InvalidConfig, "tpu"),
        ({"dtype": "int4"}, InvalidConfig, "int4"),
        ({"model_path": Path("/nowhere")}, InvalidModel, "config.json"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_work_is_refused(
    changes: dict[str, object], error: type[Exception], cause: str, tmp_path: Path
) -> None:
    folder = make_checkpoint(tmp_path, "llama")

    with pytest.raises(error, match=cause):
        build_engine(small_config(folder, **changes), TensorParallel.single())


def test_auto_picks_bfloat16_only_where_it_is_the_fastest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_checkpoint(tmp_path, "llama")
    model = ModelConfig.from_folder(folder)
    config = small_config(folder, dtype="auto")

    throughput = small_config(folder, dtype="auto", preset=Preset.THROUGHPUT)
    for is_native, has_bfloat16, expected in (
        (True, True, (torch.float32, torch.bfloat16)),
        (True, False, (torch.float32, torch.float32)),
        (False, True, (torch.bfloat16, torch.bfloat16)),
        (False, False, (torch.float32, torch.float32)),
    ):
        monkeypatch.setattr(native_library, "can_run", lambda *_, native=is_native: native)
        monkeypatch.setattr(
            torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda has=has_bfloat16: has
        )
        chosen = [choose_dtype(each, model, torch.device("cpu")) for each in (config, throughput)]
        assert tuple(chosen) == expected
    monkeypatch.setattr(native_library, "can_run", lambda *_: True)
    quantized = small_config(folder, dtype="auto", preset=Preset.THROUGHPUT, quantization="w8a8")
    assert choose_dtype(quantized, model, torch.device("cpu")) == torch.float32
    assert choose_dtype(config, model, torch.device("cuda")) == model.dtype
    assert choose_dtype(small_config(folder, dtype="float16"), model, torch.device("cpu")) == (
        torch.float16
    )


def test_the_device_is_the_one_that_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device(small_config(tmp_path, device="auto")).type == "cpu"
    with pytest.raises(InvalidConfig, match="sees no CUDA GPU"):
        choose_device(small_config(tmp_path, device="cuda"))

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    assert choose_device(small_config(tmp_path, device="auto")) == torch.device("cuda", 3)
    assert choose_device(small_config(tmp_path, device="cpu")).type == "cpu"


@pytest.mark.parametrize("is_native", [False, True])
def test_ranks_share_the_cores(
    is_native: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_torch: list[int] = []
    of_kernels: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", of_torch.append)
    monkeypatch.setattr(native_library, "set_num_threads", of_kernels.append)
    monkeypatch.setattr(native_library, "can_run", lambda *_: is_native)
    monkeypatch.setattr(device, "available_cores", lambda: 8)

    for changes in (
        {},
        {"tensor_parallel_size": 3},
        {"tensor_parallel_size": 16},
        {"num_threads": 5},
    ):
        config = small_config(tmp_path, **{"num_threads": None, **changes})
        set_num_threads(config, torch.device("cpu"), torch.float32)

    busy, idle = (of_kernels, of_torch) if is_native else (of_torch, of_kernels)
    assert busy == [8, 2, 1, 5]
    assert idle == [1, 1, 1, 1]
