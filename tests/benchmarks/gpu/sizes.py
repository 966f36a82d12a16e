"""What is measured: shapes, batches and contexts, all of which a test replaces by tiny ones."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.benchmarks.gpu.models import CONFIGS


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """The kernels alone have the shapes of Llama 3.1 8B."""

    repeats: int = 20
    copy_bytes: int = 2 << 30
    """Of the copy that is the ceiling."""
    matmul_size: int = 8192
    """Of the square product that is the other ceiling."""
    cache_bytes: int = 200 << 20
    """More than the cache of any device holds."""
    max_copies: int = 256
    """Of the data of one kernel, so that together they leave the cache behind."""

    block_size: int = 16
    num_kv_heads: int = 8
    group_size: int = 4
    head_dim: int = 128
    hidden: int = 4096
    ffn: int = 14336
    vocab_size: int = 128256
    decode_attention: tuple[tuple[int, int], ...] = (
        (1, 1024), (1, 32768), (8, 1024), (8, 8192), (64, 1024), (64, 8192), (256, 1024),
    )  # fmt: skip
    """Sequences and the length of each."""
    prefill_attention: tuple[tuple[int, int], ...] = ((1, 2048), (1, 8192), (8, 1024))
    elementwise_tokens: tuple[int, ...] = (64, 8192)
    linear_tokens: tuple[int, ...] = (1, 16, 256, 2048)
    sample_rows: tuple[int, ...] = (1, 64, 256)
    num_copied_layers: int = 16
    num_copied_blocks: int = 512

    models: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: CONFIGS)
    compared_model: str = "Qwen3-0.6B"
    """The one that is also served whole, by PageRay and its peers."""
    kv_cache_bytes: int | None = None
    """None: what the device has room for."""
    batches: tuple[int, ...] = (1, 8, 64, 256)
    contexts: tuple[int, ...] = (1024, 8192)
    prefills: tuple[int, ...] = (512, 2048, 8192)
    engine_batches: tuple[int, ...] = (1, 64, 256)
    num_engine_steps: int = 50
    prompt_tokens: int = 128
    workloads: tuple[tuple[int, int], ...] = ((512, 128), (64, 256))
    """Requests and the tokens that each of them gets, for PageRay alone."""
    num_peer_requests: int = 64
    num_peer_tokens: int = 128
    batching_settings: Mapping[str, Any] = field(default_factory=dict)
    """Of transformers' continuous batching, where not its own choice."""

    @property
    def heads(self) -> tuple[int, int, int]:
        """KV heads, query heads of each, head size."""
        return self.num_kv_heads, self.group_size, self.head_dim

    @property
    def num_attention_tokens(self) -> int:
        """Tokens of the KV cache that the largest attention needs."""
        return max(n * length for n, length in (*self.decode_attention, *self.prefill_attention))

    def prompts(self, count: int, first: int = 0) -> list[list[int]]:
        """Return prompts number `first` and following, all of them different."""
        return [
            [1 + i // 100, *(1 + (i * 7 + k) % 100 for k in range(1, self.prompt_tokens))]
            for i in range(first, first + count)
        ]
