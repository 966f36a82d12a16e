"""The tensors of a quantised linear layer: their names, their shapes, and how to read a share.

Eight 4-bit integers make an int32, the first in its lowest bits. AWQ packs along the outputs, in
its own order; GPTQ and compressed-tensors pack weights along the inputs and zeros along the
outputs. AWQ and GPTQ lie as [in, out], all others as [out, in].

compressed-tensors' names and shapes are those of compressors/pack_quantized in its repository,
github.com/vllm-project/compressed-tensors; "weight_g_idx" is that of its versions before 0.20.
"""

from typing import Protocol

import torch
from torch import Tensor

from engine.errors import InvalidConfig
from engine.quantization_config import (
    AwqScheme,
    Fp8Scheme,
    GptqScheme,
    PackedScheme,
    Scheme,
)
from kernels.quantized_matrix import QuantizedMatrix, StoredAs

_PER_WORD = 8
# Where in its word AWQ keeps each of eight neighbours: 0, 2, 4, 6, 1, 3, 5, 7 lie in a row.
_AWQ_PLACES = (0, 4, 1, 5, 2, 6, 3, 7)
_SYMMETRIC_ZERO = 8
# Scales of inputs and of the KV cache are for products and caches in few bits.
_UNREAD_SCALES = ("input_scale", "activation_scale", "k_scale", "v_scale")


class Read(Protocol):
    """Reads a share of a tensor to where weights go, see `Checkpoint.read`."""

    def __call__(self, name: str, rows: slice = ..., columns: slice = ...) -> Tensor:
        """Read rows and columns of the tensor `name`."""


def tensor_shapes(scheme: Scheme, num_outputs: int, num_inputs: int) -> dict[str, tuple[int, ...]]:
    """Return name, after the layer's, and shape of each tensor that stands for its weight."""
    match scheme:
        case AwqScheme(group_size):
            num_groups, words = _cover(num_inputs, group_size), _cover(num_outputs, _PER_WORD)
            return {
                "qweight": (num_inputs, words),
                "qzeros": (num_groups, words),
                "scales": (num_groups, num_outputs),
            }
        case GptqScheme(group_size, has_group_index, is_symmetric):
            num_groups = _cover(num_inputs, group_size)
            shapes: dict[str, tuple[int, ...]] = {
                "qweight": (_cover(num_inputs, _PER_WORD), num_outputs),
                "scales": (num_groups, num_outputs),
            }
            if not is_symmetric:
                shapes["qzeros"] = (num_groups, _cover(num_outputs, _PER_WORD))
            if has_group_index:
                shapes["g_idx"] = (num_inputs,)
            return shapes
        case PackedScheme(group_size, has_group_index, is_symmetric):
            num_groups = _cover(num_inputs, group_size)
            shapes = {
                "weight_packed": (num_outputs, _cover(num_inputs, _PER_WORD)),
                "weight_scale": (num_outputs, num_groups),
            }
            if not is_symmetric:
                shapes["weight_zero_point"] = (_cover(num_outputs, _PER_WORD), num_groups)
            if has_group_index:
                shapes["weight_g_idx"] = (num_inputs,)
            return shapes
        case Fp8Scheme(scale_name, block_rows, block_columns):
            scales = (_cover(num_outputs, block_rows), _cover(num_inputs, block_columns))
            return {
                "weight": (num_outputs, num_inputs),
                scale_name: (1,) if block_rows is None else scales,
            }


def cuts_groups(scheme: Scheme, num_inputs: int) -> bool:
    """Whether ranks that take so many inputs of a layer each would cut its groups.

    Where a tensor names the group of each input, a rank's may be of any: a part of every group.
    """
    match scheme:
        case GptqScheme(size, has_group_index) | PackedScheme(size, has_group_index):
            is_ordered = has_group_index
        case AwqScheme(size) | Fp8Scheme(block_columns=size):
            is_ordered = False
    if size is None:
        return False
    return is_ordered or (num_inputs % size != 0 and size % num_inputs != 0)


def cut_groups(name: str, num_inputs: int, size: int) -> InvalidConfig:
    """Return the error to raise where ranks cut the groups of a layer; `num_inputs`: of each."""
    return InvalidConfig(
        f"The {num_inputs} inputs of {name} that each of {size} ranks takes are no whole groups of "
        "the quantised checkpoint.",
        "Use a smaller tensor parallel size, or a checkpoint with smaller groups and, if they have "
        "an order of their own (desc_act, actorder), without it.",
    )


def unread_endings(scheme: Scheme) -> tuple[str, ...]:
    """Return endings of the names of tensors that may be there and are not needed."""
    match scheme:
        case AwqScheme():
            return ()
        case GptqScheme():
            # Old writers add biases of zeros to layers that have none.
            return (".g_idx", ".qzeros", "_proj.bias", "lm_head.bias")
        case PackedScheme():
            # The shape follows from the config.
            return (".weight_shape", ".weight_g_idx", ".weight_zero_point", *_UNREAD_SCALES)
        case Fp8Scheme():
            return _UNREAD_SCALES


def read_matrix(
    read: Read, name: str, scheme: Scheme, rows: slice, columns: slice
) -> QuantizedMatrix:
    """Read a share of a layer's weight.

    Args:
        read: of the checkpoint's tensors.
        name: of the layer.
        scheme: how it is quantised.
        rows: its outputs, both ends given.
        columns: its inputs, both ends given.
    """
    match scheme:
        case AwqScheme():
            return _read_awq(read, name, scheme, rows, columns)
        case GptqScheme():
            return _read_gptq(read, name, scheme, rows, columns)
        case PackedScheme():
            return _read_packed(read, name, scheme, rows, columns)
        case Fp8Scheme():
            return _read_fp8(read, name, scheme, rows, columns)


def _read_awq(
    read: Read, name: str, scheme: AwqScheme, rows: slice, columns: slice
) -> QuantizedMatrix:
    groups = _covering(columns, scheme.group_size)
    words, own = _covering(rows, _PER_WORD), _within(rows, _PER_WORD)

    def unpack(packed: Tensor) -> Tensor:
        eights = _nibbles(packed).view(*packed.shape, _PER_WORD)
        return eights[:, :, list(_AWQ_PLACES)].flatten(1)[:, own].T

    values = unpack(read(f"{name}.qweight", columns, words))
    return QuantizedMatrix(
        StoredAs.INT4,
        values,
        scales=read(f"{name}.scales", groups, rows).T,
        zeros=unpack(read(f"{name}.qzeros", groups, words)),
        group_of_input=_consecutive(columns, scheme.group_size, values.device),
    )


def _read_gptq(
    read: Read, name: str, scheme: GptqScheme, rows: slice, columns: slice
) -> QuantizedMatrix:
    words = _covering(columns, _PER_WORD)
    values = _nibbles(read(f"{name}.qweight", words, rows).T)[:, _within(columns, _PER_WORD)]
    groups, group_of_input = _groups(read, f"{name}.g_idx", scheme, columns, values.device)
    scales = read(f"{name}.scales", groups, rows).T
    if scheme.is_symmetric:
        zeros = torch.full_like(scales, _SYMMETRIC_ZERO, dtype=torch.uint8)
    else:
        packed = read(f"{name}.qzeros", groups, _covering(rows, _PER_WORD))
        zeros = _nibbles(packed)[:, _within(rows, _PER_WORD)].T + scheme.zero_offset
    return _of_used_groups(values, scales, zeros, group_of_input)


def _read_packed(
    read: Read, name: str, scheme: PackedScheme, rows: slice, columns: slice
) -> QuantizedMatrix:
    words = _covering(columns, _PER_WORD)
    values = _nibbles(read(f"{name}.weight_packed", rows, words))[:, _within(columns, _PER_WORD)]
    groups, group_of_input = _groups(read, f"{name}.weight_g_idx", scheme, columns, values.device)
    scales = read(f"{name}.weight_scale", rows, groups)
    if scheme.is_symmetric:
        zeros = torch.full_like(scales, _SYMMETRIC_ZERO, dtype=torch.uint8)
    else:
        # Values and zeros are signed, and both are packed with 8 added.
        packed = read(f"{name}.weight_zero_point", _covering(rows, _PER_WORD), groups)
        zeros = _nibbles(packed.T)[:, _within(rows, _PER_WORD)].T
    return _of_used_groups(values, scales, zeros, group_of_input)


def _read_fp8(
    read: Read, name: str, scheme: Fp8Scheme, rows: slice, columns: slice
) -> QuantizedMatrix:
    values = read(f"{name}.weight", rows, columns).view(torch.uint8)
    scales = read(f"{name}.{scheme.scale_name}").float()
    # Small beside the weights, so read whole: [blocks of rows, blocks of columns].
    scales = scales.reshape(1, 1) if scheme.block_rows is None else scales
    block_of_row = _blocks(rows, scheme.block_rows, values.device)
    return QuantizedMatrix(
        StoredAs.FP8,
        values,
        scales=scales[block_of_row][:, _covering(columns, scheme.block_columns)],
        zeros=None,
        group_of_input=_consecutive(columns, scheme.block_columns, values.device),
    )


def _groups(
    read: Read,
    index_name: str,
    scheme: GptqScheme | PackedScheme,
    columns: slice,
    device: torch.device,
) -> tuple[slice, Tensor]:
    """Return which groups to read for these inputs, and the group of each input among them."""
    if scheme.has_group_index:
        index = read(index_name, columns).long()
        # Negative where the writer has not set it, which is as good as none.
        if bool((index >= 0).all()):
            return slice(None), index  # a share's inputs may belong to any of the groups
    own = _covering(columns, scheme.group_size)
    return own, _consecutive(columns, scheme.group_size, device)


def _of_used_groups(
    values: Tensor, scales: Tensor, zeros: Tensor, group_of_input: Tensor
) -> QuantizedMatrix:
    matrix = QuantizedMatrix(StoredAs.INT4, values, scales, zeros, group_of_input)
    return matrix.columns(slice(None))


def _nibbles(words: Tensor) -> Tensor:
    """Unpack int32 [n, words] to [n, 8 * words] uint8, lowest bits first."""
    # Of each int32 the lowest byte comes first on every processor that torch runs on.
    # A copy: torch calls a single column contiguous whatever its stride, and does not view it.
    octets = words.clone(memory_format=torch.contiguous_format).view(torch.uint8)
    return torch.stack((octets & 15, octets >> 4), dim=2).flatten(1)


def _cover(size: int, block: int | None) -> int:
    """Return how many blocks hold `size` elements."""
    return 1 if block is None else -(-size // block)


def _covering(part: slice, block: int | None) -> slice:
    """Return the blocks that hold any of the part."""
    return slice(0, 1) if block is None else slice(part.start // block, -(-part.stop // block))


def _within(part: slice, block: int) -> slice:
    """Return where the part is in the blocks that cover it."""
    before = part.start // block * block
    return slice(part.start - before, part.stop - before)


def _blocks(part: slice, block: int | None, device: torch.device) -> Tensor:
    """Return the block of each element of the part, int64."""
    elements = torch.arange(part.start, part.stop, device=device)
    return torch.zeros_like(elements) if block is None else elements // block


def _consecutive(part: slice, block: int | None, device: torch.device) -> Tensor:
    """Return the same, counted from the part's first block."""
    blocks = _blocks(part, block, device)
    return blocks - blocks[0]
