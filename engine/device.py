"""Which device, number format and threads an engine uses on this machine."""

import torch

from engine.config import EngineConfig, Preset
from engine.errors import InvalidConfig
from engine.host import available_cores
from engine.model_config import ModelConfig
from kernels import gpu_library, native_library, ops
from kernels.weights import Packing

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def choose_device(config: EngineConfig) -> torch.device:
    """Return the device of this process. Raises InvalidConfig when it is not there."""
    has_cuda = torch.cuda.is_available()
    if config.device == "cpu" or (config.device == "auto" and not has_cuda):
        return torch.device("cpu")
    if config.device not in ("auto", "cuda"):
        raise InvalidConfig(f"Device {config.device!r} is unknown.", "Use auto, cpu or cuda.")
    if not has_cuda:
        raise InvalidConfig(
            "Device cuda was asked for, but torch sees no CUDA GPU.",
            "Use --device cpu, or install a CUDA build of torch on a machine with a GPU.",
        )
    return torch.device("cuda", torch.cuda.current_device())


def choose_dtype(config: EngineConfig, model: ModelConfig, device: torch.device) -> torch.dtype:
    """Return what weights, activations and KV cache are kept in."""
    if config.dtype != "auto":
        if config.dtype not in _DTYPES:
            known = ", ".join(_DTYPES)
            raise InvalidConfig(f"Dtype {config.dtype!r} is unknown.", f"Use auto, {known}.")
        return _DTYPES[config.dtype]
    if config.deterministic:
        return torch.float32
    if device.type == "cuda":
        return model.dtype
    # Our kernels multiply bfloat16 weights in float32. Where the processor has instructions for
    # bfloat16, torch with them is slower for few sequences (0.4 times the tokens of one), as fast
    # for 16, and faster for many (1.3 times for 64). Where it has none, torch emulates them.
    is_native = native_library.can_run(0, torch.float32)
    if is_native and (config.quantization is not None or config.preset is not Preset.THROUGHPUT):
        return torch.float32
    has_bfloat16 = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.bfloat16 if has_bfloat16 else torch.float32


def choose_packing(
    config: EngineConfig,
    model: ModelConfig,
    device: torch.device,
    dtype: torch.dtype,
    *,
    is_elsewhere: bool = False,
) -> Packing:
    """Return how matrices are kept. Raises InvalidConfig when they cannot be, as asked for.

    `is_elsewhere`: the device is another machine's, which has what it needs.
    """
    if config.quantization is None:
        return ops.choose_packing(dtype, device)
    if config.quantization == "fp8":
        _check_fp8(model, device, is_elsewhere)
        return Packing.FP8
    if not ops.can_quantize(dtype, device):
        name = str(dtype).removeprefix("torch.")
        raise InvalidConfig(
            f"Quantization {config.quantization} needs the compiled CPU kernels, and they do not "
            f"run here: {device.type}, {name}.",
            "Use --device cpu --dtype float32 and install PageRay on a machine with a C++ "
            "compiler, or leave the quantization out.",
        )
    return Packing.INT8_PANELS


def _check_fp8(model: ModelConfig, device: torch.device, is_elsewhere: bool) -> None:
    if model.quantization is not None:
        raise InvalidConfig(
            "Quantization fp8 was asked for, but the checkpoint is quantised already.",
            "Leave the quantization out, or give the model's unquantised checkpoint.",
        )
    if not is_elsewhere and not ops.keeps_quantized(device):
        found = "Triton is not installed" if device.type == "cuda" else f"the device is {device}"
        raise InvalidConfig(
            f"Quantization fp8 needs a CUDA GPU and Triton, and {found}.",
            "Use --device cuda and install PageRay with its extra gpu, use --quantization w8a8 on "
            "CPU, or leave the quantization out.",
        )


def check_kv_cache_dtype(
    config: EngineConfig, device: torch.device, *, is_elsewhere: bool = False
) -> None:
    """Raise InvalidConfig where the cache cannot be kept as asked for; see `choose_packing`."""
    if not config.has_float8_kv or is_elsewhere or gpu_library.can_cache_float8(device):
        return
    found = f"the device is {device.type}"
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        found = f"the GPU has {major}.{minor}" if (major, minor) < (8, 9) else "Triton is missing"
    raise InvalidConfig(
        "A KV cache in fp8 needs Triton and a CUDA GPU of compute capability 8.9 or later (Ada, "
        f"Hopper), and {found}.",
        "Use --kv-cache-dtype auto, or such a GPU and PageRay's extra gpu.",
    )


def set_num_threads(config: EngineConfig, device: torch.device, dtype: torch.dtype) -> None:
    """Give this rank its share of the cores; ranks that share all of them slow each other down."""
    if device.type != "cpu":
        return
    share = max(available_cores() // config.tensor_parallel_size, 1)
    num_threads = config.num_threads or share
    # Where our kernels compute, torch has little to do and its threads would only spin beside them.
    is_native = native_library.can_run(0, dtype)
    torch.set_num_threads(1 if is_native else num_threads)
    native_library.set_num_threads(num_threads if is_native else 1)
