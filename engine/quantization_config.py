"""How a checkpoint is quantised, as `quantization_config` of its config.json tells it.

Knows names and numbers; how the tensors lie is for `engine.quantized_checkpoint`. The formats:
AWQ: J. Lin et al., arXiv 2306.00978, in AutoAWQ's "gemm" version; GPTQ: E. Frantar et al.,
arXiv 2210.17323, in AutoGPTQ's; float8: Hugging Face's "fp8"; float8 and 4-bit integers in
compressed-tensors': huggingface.co/docs/transformers/quantization/compressed_tensors and, of
github.com/vllm-project/compressed-tensors, quantization/quant_args.py (`QuantizationArgs`).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from engine.errors import InvalidModel

_BITS = 4
_PLAIN_MODEL = "or the model's float32, bfloat16 or float16 checkpoint."
_NOT_CONVERTED = ("modules_to_not_convert",)
HEAD = "lm_head"
"""The output matrix, as a module."""


@dataclass(frozen=True, slots=True)
class AwqScheme:
    """4-bit integers with a scale and a zero for each group of inputs."""

    group_size: int | None
    """None: all inputs are one group."""


@dataclass(frozen=True, slots=True)
class GptqScheme:
    """4-bit integers with a scale and a zero for each group of inputs."""

    group_size: int | None
    """None: all inputs are one group."""
    has_group_index: bool
    """A tensor names the group of each input (desc_act); else they follow each other."""
    is_symmetric: bool
    """The zero is 8 everywhere. What is stored for it is not read: writers disagree about it."""
    zero_offset: int
    """What is to be added to zeros as they are stored."""


@dataclass(frozen=True, slots=True)
class PackedScheme:
    """4-bit integers with a scale for each group of inputs, as compressed-tensors packs them."""

    group_size: int | None
    """None: all inputs are one group."""
    has_group_index: bool
    """A tensor names the group of each input (actorder "group"); else they follow each other."""
    is_symmetric: bool
    """The zero is 8 everywhere; else each group has its own."""


@dataclass(frozen=True, slots=True)
class Fp8Scheme:
    """float8_e4m3fn; inputs of products stay as they are, so scales for these are not read."""

    scale_name: str
    block_rows: int | None
    """Outputs that share a scale; None: all of them."""
    block_columns: int | None
    """Inputs that share a scale; None: all of them."""


Scheme = AwqScheme | GptqScheme | PackedScheme | Fp8Scheme


@dataclass(frozen=True, slots=True)
class QuantizationConfig:
    """The scheme of a checkpoint's linear layers and which of them it leaves alone."""

    scheme: Scheme
    ignored: tuple[str, ...] = ()
    """Parts of module names, whole between dots, or "re:" and a pattern of their beginning."""
    only: tuple[str, ...] | None = None
    """Parts of the names of those that are quantised; None: all but the ignored ones."""

    def covers(self, module: str) -> bool:
        """Whether a linear layer, `HEAD` among them, is quantised, by name without ".weight"."""
        if self.only is not None and not any(_is_part(name, module) for name in self.only):
            return False
        return not any(_is_part(name, module) for name in self.ignored)


def parse_quantization(config: Mapping[str, Any]) -> QuantizationConfig | None:
    """Read it from config.json; None: the checkpoint is not quantised.

    Raises InvalidModel when we cannot read such a checkpoint.
    """
    settings = config.get("quantization_config")
    if not settings:
        return None
    method = settings.get("quant_method") if isinstance(settings, dict) else None
    match str(method).lower():
        case "awq":
            return _awq(settings)
        case "gptq":
            return _gptq(settings)
        case "fp8":
            return _fp8(settings)
        case "compressed-tensors":
            return _compressed_tensors(settings)
    raise InvalidModel(
        f"The checkpoint is quantised by a method that is not supported: {method!r}.",
        f"Use a checkpoint in awq, gptq, fp8, compressed-tensors' float8 or 4-bit integers, "
        f"{_PLAIN_MODEL}",
    )


def _awq(settings: Mapping[str, Any]) -> QuantizationConfig:
    version = str(settings.get("version", "gemm")).lower()
    found = (settings.get("bits", _BITS), version, settings.get("zero_point", True))
    if found != (_BITS, "gemm", True):
        raise InvalidModel(
            f"The AWQ checkpoint has bits {found[0]!r}, version {version!r}, zero_point "
            f"{found[2]!r}, which is not supported.",
            f"Use an AWQ checkpoint of 4 bits, version gemm, with zero points, {_PLAIN_MODEL}",
        )
    ignored = (*_names(settings, _NOT_CONVERTED), HEAD)
    return QuantizationConfig(AwqScheme(_group_size(settings)), ignored)


def _gptq(settings: Mapping[str, Any]) -> QuantizationConfig:
    form = "marlin" if settings.get("is_marlin_format") else settings.get("checkpoint_format")
    form = form or "gptq"
    if settings.get("bits") != _BITS or form not in ("gptq", "gptq_v2") or settings.get("dynamic"):
        more = ", dynamic" if settings.get("dynamic") else ""
        raise InvalidModel(
            f"The GPTQ checkpoint has bits {settings.get('bits')!r}, format {form!r}{more}, "
            "which is not supported.",
            f"Use a GPTQ checkpoint of 4 bits in every layer, format gptq or gptq_v2, "
            f"{_PLAIN_MODEL}",
        )
    scheme = GptqScheme(
        group_size=_group_size(settings),
        has_group_index=bool(settings.get("desc_act", False)),
        is_symmetric=bool(settings.get("sym", True)),
        # The first format stores zeros less one.
        zero_offset=1 if form == "gptq" else 0,
    )
    ignored = _names(settings, _NOT_CONVERTED)
    inside = settings.get("modules_in_block_to_quantize")
    only = None if inside is None else (*_flatten(inside), HEAD)
    return QuantizationConfig(scheme, ignored if settings.get(HEAD) else (*ignored, HEAD), only)


def _fp8(settings: Mapping[str, Any]) -> QuantizationConfig:
    ignored = (*_names(settings, (*_NOT_CONVERTED, "ignored_layers")), HEAD)
    block = settings.get("weight_block_size")
    if block is None:
        # AutoFP8's, which this method named first: one scale for each matrix.
        return QuantizationConfig(Fp8Scheme("weight_scale", None, None), ignored)
    return QuantizationConfig(Fp8Scheme("weight_scale_inv", *_block(block)), ignored)


def _compressed_tensors(settings: Mapping[str, Any]) -> QuantizationConfig:
    groups = settings.get("config_groups")
    group = next(iter(groups.values())) if isinstance(groups, dict) and len(groups) == 1 else None
    weights = group.get("weights") if isinstance(group, dict) else None
    if not isinstance(group, dict) or not isinstance(weights, dict):
        raise InvalidModel(
            "The compressed-tensors checkpoint has not one group of quantised weights.",
            f"Use one whose linear layers are quantised alike, {_PLAIN_MODEL}",
        )
    form = settings.get("format")
    scheme = _packed(weights) if form == "pack-quantized" else _float_quantized(weights, form)
    if scheme is None or group.get("targets") != ["Linear"]:
        raise InvalidModel(
            f"The compressed-tensors checkpoint has weights of {weights.get('num_bits')!r} bits, "
            f"type {weights.get('type')!r}, strategy {weights.get('strategy')!r}, format {form!r}, "
            f"targets {group.get('targets')!r}, which is not supported.",
            "Use one whose targets Linear have float weights of 8 bits, by tensor, channel or "
            f"block, or packed integers of 4 bits, by channel or group, {_PLAIN_MODEL}",
        )
    # The head is a Linear too, and quantised unless they say otherwise.
    return QuantizationConfig(scheme, _names(settings, ("ignore",)))


def _float_quantized(weights: Mapping[str, Any], form: object) -> Fp8Scheme | None:
    kind = (weights.get("type"), weights.get("num_bits"), weights.get("symmetric", True))
    if kind != ("float", 8, True) or form not in ("float-quantized", "naive-quantized"):
        return None
    match weights.get("strategy"):
        case "tensor":
            return Fp8Scheme("weight_scale", None, None)
        case "channel":
            return Fp8Scheme("weight_scale", 1, None)
        case "block":
            return Fp8Scheme("weight_scale", *_block(weights.get("block_structure")))
    return None


def _packed(weights: Mapping[str, Any]) -> PackedScheme | None:
    strategy = weights.get("strategy")
    if (weights.get("type"), weights.get("num_bits")) != ("int", _BITS):
        return None
    if strategy not in ("channel", "group"):
        return None
    return PackedScheme(
        group_size=_group_size(weights) if strategy == "group" else None,
        # Its other order, "weight", is that of the quantising alone.
        has_group_index=weights.get("actorder") in (True, "group", "dynamic"),
        is_symmetric=bool(weights.get("symmetric", True)),
    )


def _group_size(settings: Mapping[str, Any]) -> int | None:
    size = settings.get("group_size", 128)
    if size == -1:
        return None
    if not _is_count(size):
        raise InvalidModel(
            f"The checkpoint's quantisation has group_size {size!r}.",
            "Repair it in the model's config.json: a positive number, or -1 for one group.",
        )
    return int(size)


def _block(block: object) -> tuple[int | None, int | None]:
    if not isinstance(block, list) or len(block) != 2 or not all(map(_is_count, block)):
        raise InvalidModel(
            f"The checkpoint's quantisation has blocks of {block!r}.",
            "Repair them in the model's config.json: two positive numbers.",
        )
    return block[0], block[1]


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _names(settings: Mapping[str, Any], keys: tuple[str, ...]) -> tuple[str, ...]:
    """Return the module names under any of the keys, their patterns checked."""
    names = tuple(name for key in keys for name in _flatten(settings.get(key) or []))
    for name in names:
        try:
            re.compile(name.removeprefix("re:") if name.startswith("re:") else "")
        except re.error as error:
            raise InvalidModel(
                f"The checkpoint's quantisation ignores modules by {name!r}: {error}.",
                "Repair the pattern in the model's config.json.",
            ) from error
    return names


def _flatten(names: object) -> list[str]:
    """Return the names of a list, or of a list of lists."""
    if isinstance(names, list):
        return [name for part in names for name in _flatten(part)]
    return [str(names)]


def _is_part(name: str, module: str) -> bool:
    if name.startswith("re:"):
        return re.match(name.removeprefix("re:"), module) is not None
    # Whole between dots: a model that ignores "mlp.gate" has quantised "mlp.gate_proj".
    return f".{name}." in f".{module}."
