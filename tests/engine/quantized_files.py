"""Quantises small checkpoints into each form that hubs have, by the forms' own definitions.

The packing is written as AutoAWQ, AutoGPTQ and compressed-tensors do it, integer by integer into
words, and shares nothing with what reads it. Of the last, see
huggingface.co/docs/transformers/quantization/compressed_tensors and, in its repository
github.com/vllm-project/compressed-tensors, compressors/pack_quantized.
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
Quantize = Callable[[str, Tensor], Stored]
"""From a layer's name and weight [out, in] float32."""
Order = Callable[[str], int]
"""Seed of a layer's order of inputs, by its name; layers of the same inputs may have the same."""


@dataclass(frozen=True, slots=True)
class Form:
    """A way to keep a checkpoint."""

    settings: dict[str, Any]
    """quantization_config"""
    quantize: Quantize
    has_head: bool = False
    """The output matrix is quantised too."""


def quantize_folder(plain: Path, folder: Path, form: Form, spared: str = "no layer") -> Path:
    """Save a checkpoint quantised to `folder`, and dequantised again to `folder`/dequantized.

    Layers whose names hold `spared` stay as they are.
    """
    stored, dequantized = quantize_tensors(load_file(plain / "model.safetensors"), form, spared)
    config = json.loads((plain / "config.json").read_text())
    write_folder(folder / "dequantized", dequantized, config)
    return write_folder(folder, stored, {**config, "quantization_config": form.settings})


def quantize_tensors(
    tensors: dict[str, Tensor], form: Form, spared: str = "no layer"
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return a checkpoint's tensors quantised, and dequantised again."""
    head = "lm_head" if form.has_head else "no head"
    stored, dequantized = dict(tensors), dict(tensors)
    for name, tensor in tensors.items():
        layer = name.removesuffix(".weight")
        is_linear = layer.endswith("_proj") or layer == head
        if not is_linear or spared in layer or layer == name:
            continue
        parts, values = form.quantize(layer, tensor.float())
        del stored[name]
        # A bias of the layer's own stays.
        stored = {f"{layer}.{kind}": part.contiguous() for kind, part in parts.items()} | stored
        dequantized[name] = values.contiguous()
    return stored, dequantized


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
    integers = torch.nn.functional.pad(integers, (0, -integers.shape[1] % 8))
    words = torch.zeros(len(integers), integers.shape[1] // 8, dtype=torch.int64)
    for place, column in enumerate(order):
        words |= integers[:, column::8] << (4 * place)
    return words.to(torch.int32)


def awq(size: int = GROUP) -> Quantize:
    def quantize(_layer: str, weight: Tensor) -> Stored:
        integers, scales, zeros, meant = round_groups(weight, size, symmetric=False)
        return {
            "qweight": pack_columns(integers.T, _AWQ_ORDER),
            "qzeros": pack_columns(zeros.T, _AWQ_ORDER),
            "scales": scales.T,
        }, meant

    return quantize


def gptq(
    symmetric: bool = False, zero_offset: int = 1, size: int = GROUP, order: Order | None = None
) -> Quantize:
    def quantize(layer: str, weight: Tensor) -> Stored:
        g_idx = group_index(layer, weight, size, order)
        integers, scales, zeros, meant = round_ordered(weight, g_idx, symmetric)
        return {
            "qweight": pack_columns(integers).T,
            "qzeros": pack_columns((zeros - zero_offset).T),
            "scales": scales.T,
            "g_idx": g_idx,
            # As AutoGPTQ once wrote for layers without any.
            "bias": torch.zeros(len(weight), dtype=torch.float16),
        }, meant

    return quantize


def packed(symmetric: bool, size: int = GROUP, order: Order | None = None) -> Quantize:
    """compressed-tensors' "pack-quantized"."""

    def quantize(layer: str, weight: Tensor) -> Stored:
        g_idx = group_index(layer, weight, size, order)
        # Its integers are signed; before packing 8 is added to them, and to the zeros.
        integers, scales, zeros, meant = round_ordered(weight, g_idx, symmetric)
        parts = {
            "weight_packed": pack_columns(integers),
            "weight_scale": scales.to(weight.dtype),
            "weight_shape": torch.tensor(weight.shape),
        }
        if not symmetric:
            parts["weight_zero_point"] = pack_columns(zeros.T).T
        if order is not None:
            parts["weight_g_idx"] = g_idx
        return parts, meant

    return quantize


def group_index(layer: str, weight: Tensor, size: int, order: Order | None) -> Tensor:
    """Return the group of each input, int32."""
    num_inputs = weight.shape[1]
    groups = torch.arange(num_inputs) // (num_inputs if size == -1 else size)
    if order is not None:
        generator = torch.Generator().manual_seed(order(layer))
        groups = groups[torch.randperm(num_inputs, generator=generator)]
    return groups.to(torch.int32)


def round_ordered(weight: Tensor, g_idx: Tensor, symmetric: bool) -> tuple[Tensor, ...]:
    """Do what `round_groups` does, where inputs of a group may lie anywhere."""
    order = g_idx.argsort(stable=True)
    size = int((g_idx == 0).sum())
    sorted_integers, scales, zeros, sorted_meant = round_groups(weight[:, order], size, symmetric)
    integers, meant = torch.empty_like(sorted_integers), torch.empty_like(sorted_meant)
    integers[:, order], meant[:, order] = sorted_integers, sorted_meant
    return integers, scales, zeros, meant


def fp8(scale_name: str, shape: str, block: tuple[int, int] = BLOCK) -> Quantize:
    """`shape`: of the scales: scalar, one, channel or block."""

    def quantize(_layer: str, weight: Tensor) -> Stored:
        rows, columns = {"channel": (1, weight.shape[1]), "block": block}.get(shape, weight.shape)
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


def same_inputs(layer: str) -> int:
    """Seeds alike for layers that get the same inputs."""
    kind = {"q_proj": 1, "k_proj": 1, "v_proj": 1, "gate_proj": 2, "up_proj": 2, "o_proj": 3}
    return kind.get(layer.split(".")[-1], 4)


AWQ_SETTINGS = {"quant_method": "awq", "bits": 4, "zero_point": True}


def gptq_settings(**changes: Any) -> dict[str, Any]:
    settings = {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": False}
    return {**settings, "sym": False, **changes}


def compressed_float8(strategy: str, **weights: Any) -> dict[str, Any]:
    kind = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": strategy}
    return _compressed("float-quantized", {**kind, **weights})


def compressed_int4(symmetric: bool, size: int = GROUP, **weights: Any) -> dict[str, Any]:
    kind = {"num_bits": 4, "type": "int", "symmetric": symmetric, "actorder": None, **weights}
    strategy = {"strategy": "channel"} if size == -1 else {"strategy": "group", "group_size": size}
    return _compressed("pack-quantized", {**kind, **strategy})


def _compressed(form: str, weights: dict[str, Any]) -> dict[str, Any]:
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
        "ignore": ["lm_head"],
    }


FORMS = {
    "awq": Form({**AWQ_SETTINGS, "group_size": GROUP}, awq()),
    "gptq": Form(gptq_settings(), gptq()),
    "gptq-v2": Form(gptq_settings(checkpoint_format="gptq_v2"), gptq(zero_offset=0)),
    # A writer of the second format that says it is the first: zeros are known all the same.
    "gptq-symmetric": Form(gptq_settings(sym=True), gptq(symmetric=True, zero_offset=0)),
    "gptq-one-group": Form(gptq_settings(group_size=-1), gptq(size=-1)),
    "gptq-ordered": Form(gptq_settings(desc_act=True), gptq(order=same_inputs)),
    "gptq-own-orders": Form(
        gptq_settings(desc_act=True), gptq(order=lambda layer: sum(map(ord, layer)))
    ),
    "fp8-blocks": Form(
        {"quant_method": "fp8", "weight_block_size": list(BLOCK)}, fp8("weight_scale_inv", "block")
    ),
    "fp8-static": Form(
        {"quant_method": "fp8", "activation_scheme": "static"}, fp8("weight_scale", "scalar")
    ),
    "compressed-tensor": Form(compressed_float8("tensor"), fp8("weight_scale", "one")),
    "compressed-channel": Form(compressed_float8("channel"), fp8("weight_scale", "channel")),
    "compressed-block": Form(
        compressed_float8("block", block_structure=list(BLOCK)), fp8("weight_scale", "block")
    ),
    "packed": Form(compressed_int4(False), packed(False)),
    "packed-symmetric": Form(compressed_int4(True), packed(True)),
    "packed-channel": Form(compressed_int4(False, -1), packed(False, -1)),
    "packed-ordered": Form(
        compressed_int4(True, actorder="group"), packed(True, order=same_inputs)
    ),
}
"""Every form that the engine reads."""
