"""Quantises small checkpoints into each form that hubs have, by the forms' own definitions.

The packing is written as AutoAWQ and AutoGPTQ do it, integer by integer into words, and shares
nothing with what reads it.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

GROUP = 12  # divides the inputs of every layer of tests/oracle.py's checkpoints, halved too
BLOCK = (10, 12)
_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
_FP8_MAX = 448.0

Stored = tuple[dict[str, Tensor], Tensor]
"""What a layer's weight is stored as, by kind, and what it stands for."""


@dataclass(frozen=True, slots=True)
class Form:
    """A way to keep a checkpoint."""

    settings: dict[str, Any]
    """quantization_config"""
    quantize: Callable[[str, Tensor], Stored]
    """From a layer's name and weight [out, in] float32."""


def quantize_folder(plain: Path, folder: Path, form: Form, spared: str = "no layer") -> Path:
    """Save a checkpoint quantised to `folder`, and dequantised again to `folder`/dequantized.

    Layers whose names hold `spared` stay as they are.
    """
    tensors = load_file(plain / "model.safetensors")
    stored, dequantized = dict(tensors), dict(tensors)
    for name, tensor in tensors.items():
        layer = name.removesuffix(".weight")
        if not layer.endswith("_proj") or spared in layer or layer == name:
            continue
        parts, values = form.quantize(layer, tensor)
        del stored[name]
        # A bias of the layer's own stays.
        stored = {f"{layer}.{kind}": part.contiguous() for kind, part in parts.items()} | stored
        dequantized[name] = values.contiguous()
    config = json.loads((plain / "config.json").read_text())
    write_folder(folder / "dequantized", dequantized, config)
    return write_folder(folder, stored, {**config, "quantization_config": form.settings})


def write_folder(folder: Path, tensors: dict[str, Tensor], config: dict[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def round_groups(weight: Tensor, size: int, symmetric: bool) -> tuple[Tensor, ...]:
    """Return integers [out, in] of 4 bits, scales and zeros [out, groups], and what they mean."""
    groups = weight.reshape(len(weight), -1, size)
    low, high = groups.amin(2), groups.amax(2)
    if symmetric:
        scales = (torch.maximum(-low, high) / 7.5).half()
        zeros = torch.full_like(scales, 8, dtype=torch.int64)
    else:
        scales = ((high - low) / 15).half()
        zeros = (-low / scales.float()).round().clamp(1, 15).long()
    wide = scales.float()[:, :, None]
    integers = ((groups / wide).round().long() + zeros[:, :, None]).clamp(0, 15)
    meant = (integers - zeros[:, :, None]).float() * wide
    return integers.flatten(1), scales, zeros, meant.flatten(1)


def pack_columns(integers: Tensor, order: tuple[int, ...] = tuple(range(8))) -> Tensor:
    """Pack [n, m] into words [n, m / 8] int32; word i has column 8 * i + order[0] lowest."""
    words = torch.zeros(len(integers), integers.shape[1] // 8, dtype=torch.int64)
    for place, column in enumerate(order):
        words |= integers[:, column::8] << (4 * place)
    return words.to(torch.int32)


def awq(_layer: str, weight: Tensor) -> Stored:
    integers, scales, zeros, meant = round_groups(weight, GROUP, symmetric=False)
    return {
        "qweight": pack_columns(integers.T, _AWQ_ORDER),
        "qzeros": pack_columns(zeros.T, _AWQ_ORDER),
        "scales": scales.T,
    }, meant


def gptq(
    symmetric: bool = False,
    zero_offset: int = 1,
    size: int = GROUP,
    order_seed: Callable[[str], int] | None = None,
) -> Callable[[str, Tensor], Stored]:
    """`order_seed`: of a layer's name; layers of the same inputs and seed have the same order."""

    def quantize(layer: str, weight: Tensor) -> Stored:
        num_inputs = weight.shape[1]
        own_size = num_inputs if size == -1 else size
        g_idx = torch.arange(num_inputs) // own_size
        if order_seed is not None:
            generator = torch.Generator().manual_seed(order_seed(layer))
            g_idx = g_idx[torch.randperm(num_inputs, generator=generator)]
        order = g_idx.argsort(stable=True)
        sorted_integers, scales, zeros, sorted_meant = round_groups(
            weight[:, order], own_size, symmetric
        )
        integers, meant = torch.empty_like(sorted_integers), torch.empty_like(sorted_meant)
        integers[:, order], meant[:, order] = sorted_integers, sorted_meant
        return {
            "qweight": pack_columns(integers).T,
            "qzeros": pack_columns((zeros - zero_offset).T),
            "scales": scales.T,
            "g_idx": g_idx.to(torch.int32),
            # As AutoGPTQ once wrote for layers without any.
            "bias": torch.zeros(len(weight), dtype=torch.float16),
        }, meant

    return quantize


def fp8(scale_name: str, shape: str) -> Callable[[str, Tensor], Stored]:
    """`shape`: of the scales: scalar, one, channel or block."""

    def quantize(_layer: str, weight: Tensor) -> Stored:
        rows, columns = {"channel": (1, weight.shape[1]), "block": BLOCK}.get(shape, weight.shape)
        num_rows, num_columns = -(-len(weight) // rows), -(-weight.shape[1] // columns)
        scales = torch.empty(num_rows, num_columns)
        stored = torch.empty(weight.shape, dtype=torch.float8_e4m3fn)
        meant = torch.empty_like(weight)
        for i in range(num_rows):
            for j in range(num_columns):
                place = (slice(i * rows, (i + 1) * rows), slice(j * columns, (j + 1) * columns))
                scales[i, j] = weight[place].abs().max() / _FP8_MAX
                values = (weight[place] / scales[i, j]).to(torch.float8_e4m3fn)
                stored[place], meant[place] = values, values.float() * scales[i, j]
        parts = {"weight": stored, scale_name: scales}
        if shape in ("scalar", "one"):
            parts[scale_name] = scales.reshape(() if shape == "scalar" else (1,))
            parts["input_scale"] = torch.ones(())
        return parts, meant

    return quantize


def _same_inputs(layer: str) -> int:
    """Seeds alike for layers that get the same inputs."""
    kind = {"q_proj": 1, "k_proj": 1, "v_proj": 1, "gate_proj": 2, "up_proj": 2, "o_proj": 3}
    return kind.get(layer.split(".")[-1], 4)


def _gptq_settings(**changes: Any) -> dict[str, Any]:
    settings = {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": False}
    return {**settings, "sym": False, **changes}


def _compressed(strategy: str, **weights: Any) -> dict[str, Any]:
    kind = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": strategy, **weights}
    return {
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": kind}},
        "ignore": ["lm_head"],
    }


FORMS = {
    "awq": Form({"quant_method": "awq", "bits": 4, "group_size": GROUP, "zero_point": True}, awq),
    "gptq": Form(_gptq_settings(), gptq()),
    "gptq-v2": Form(_gptq_settings(checkpoint_format="gptq_v2"), gptq(zero_offset=0)),
    # A writer of the second format that says it is the first: zeros are known all the same.
    "gptq-symmetric": Form(_gptq_settings(sym=True), gptq(symmetric=True, zero_offset=0)),
    "gptq-one-group": Form(_gptq_settings(group_size=-1), gptq(size=-1)),
    "gptq-ordered": Form(_gptq_settings(desc_act=True), gptq(order_seed=_same_inputs)),
    "gptq-own-orders": Form(
        _gptq_settings(desc_act=True), gptq(order_seed=lambda layer: sum(map(ord, layer)))
    ),
    "fp8-blocks": Form(
        {"quant_method": "fp8", "weight_block_size": list(BLOCK)}, fp8("weight_scale_inv", "block")
    ),
    "fp8-static": Form(
        {"quant_method": "fp8", "activation_scheme": "static"}, fp8("weight_scale", "scalar")
    ),
    "compressed-tensor": Form(_compressed("tensor"), fp8("weight_scale", "one")),
    "compressed-channel": Form(_compressed("channel"), fp8("weight_scale", "channel")),
    "compressed-block": Form(
        _compressed("block", block_structure=list(BLOCK)), fp8("weight_scale", "block")
    ),
}
"""Every form that the engine reads."""
