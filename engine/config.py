"""Settings of one engine. Frozen; read from argv and files elsewhere, handed over whole."""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from engine.errors import InvalidConfig

MAX_BLOCK_SIZE = 256
_FLOAT8_NAMES = ("fp8", "fp8_e4m3")


class Preset(StrEnum):
    """What to favour where one stream's gain is another's loss."""

    INTERACTIVE = "interactive"
    """Even gaps between tokens, whoever waits."""
    BALANCED = "balanced"
    """Even gaps while few wait; throughput when many do."""
    THROUGHPUT = "throughput"
    """Full steps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """What one engine needs to know. Raises InvalidConfig when a value cannot work."""

    model_path: Path
    """Folder with config.json, tokenizer files and safetensors."""
    model_name: str
    """Name that requests use; part of the prefix-cache root hash."""
    load_format: str = "auto"
    """auto: the model folder's weights; dummy: random ones, only config.json is needed."""
    dtype: str = "auto"
    """auto, float32, bfloat16 or float16; auto: what is fastest on the device, with the preset."""
    quantization: str | None = None
    """w8a8: matrices are kept and multiplied as int8, in float32 on CPU; fp8: they are kept as
    float8, on CUDA; None: as stored."""
    device: str = "auto"
    """auto, cpu or cuda."""
    block_size: int = 16
    """Tokens in a KV block; a power of two."""
    kv_cache_dtype: str = "auto"
    """auto: KV in the dtype of activations; fp8, fp8_e4m3: in float8_e4m3fn, on CUDA."""
    kv_cache_bytes: int | None = None
    """KV cache of the whole group; None: a share of the memory that is free."""
    memory_utilization: float = 0.9
    """Share of a GPU to use; on CPU half of this share of what is free, and 4 GiB at most."""
    max_model_len: int | None = None
    """Longest prompt plus output in tokens; None: what the model was made for, if it fits."""
    max_num_seqs: int = 256
    """Most sequences in one step."""
    max_num_batched_tokens: int = 2048
    """Most tokens in one step."""
    preset: Preset = Preset.BALANCED
    enable_prefix_caching: bool = True
    host_kv_bytes: int = 0
    """Host memory of the whole group for KV blocks that the cache has no room for; 0: none."""
    deterministic: bool = False
    """Give the same tokens whatever the batch, the chunking and the cache hold."""
    enforce_eager: bool = False
    """Launch the kernels of every step one by one; otherwise GPUs replay those of decodes."""
    max_num_waiting: int = 4096
    """Sequences that may wait in the engine; more are refused."""
    tensor_parallel_size: int = 1
    num_threads: int | None = None
    """Compute threads of each rank on CPU; None: cores divided by ranks."""

    def __post_init__(self) -> None:
        """Check what can be checked without the model."""
        size = self.block_size
        if not 1 <= size <= MAX_BLOCK_SIZE or size & (size - 1):
            raise InvalidConfig(
                f"block size is {size}.", f"Use a power of two from 1 to {MAX_BLOCK_SIZE}."
            )
        self._check_words()
        if self.host_kv_bytes < 0:
            raise InvalidConfig(f"host_kv_bytes is {self.host_kv_bytes}.", "Use 0 or more.")
        if self.host_kv_bytes and not self.enable_prefix_caching:
            raise InvalidConfig(
                "Host memory for KV is given, and prefix caching is off.",
                "Turn prefix caching on: blocks in host memory are found by it.",
            )
        for name in ("max_num_seqs", "max_num_batched_tokens", "tensor_parallel_size"):
            if getattr(self, name) < 1:
                raise InvalidConfig(f"{name} is {getattr(self, name)}.", "Use 1 or more.")
        if not 0 < self.memory_utilization <= 1:
            raise InvalidConfig(
                f"memory utilization is {self.memory_utilization}.", "Use a value in (0, 1]."
            )

    def _check_words(self) -> None:
        if self.quantization not in (None, "w8a8", "fp8"):
            raise InvalidConfig(
                f"quantization is {self.quantization!r}.", "Use w8a8 or fp8, or leave it out."
            )
        if self.load_format not in ("auto", "dummy"):
            raise InvalidConfig(f"load format is {self.load_format!r}.", "Use auto or dummy.")
        if self.kv_cache_dtype not in ("auto", *_FLOAT8_NAMES):
            raise InvalidConfig(
                f"kv_cache_dtype is {self.kv_cache_dtype!r}.",
                f"Use auto or {_FLOAT8_NAMES[0]}.",
            )
        if self.preset not in tuple(Preset):
            raise InvalidConfig(f"preset is '{self.preset}'.", f"Use one of {', '.join(Preset)}.")

    @property
    def needs_weights(self) -> bool:
        """Whether the model folder has to hold weights."""
        return self.load_format != "dummy"

    @property
    def has_float8_kv(self) -> bool:
        """Whether keys and values are kept in float8."""
        return self.kv_cache_dtype in _FLOAT8_NAMES
