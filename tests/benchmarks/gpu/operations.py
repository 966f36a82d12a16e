"""The other kernels alone: how fast they read and write, and how fast the products compute."""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F  # noqa: N812  the name everybody knows
from torch import Tensor

from kernels import ops, quantized_linear
from kernels.gpu.copy_blocks import block_planes, copy_blocks
from kernels.gpu.fp8_linear import fp8_linear
from kernels.gpu.gated_activation import silu_and_mul
from kernels.gpu.int4_linear import int4_linear
from kernels.gpu.rms_norm import add_rms_norm, rms_norm
from kernels.gpu.rotate_and_store import rotate_and_store
from kernels.gpu.sample import sample
from kernels.layout import AttentionGeometry
from kernels.quantized_matrix import QuantizedMatrix, StoredAs, round_to_fp8
from kernels.sampling_rows import DrawParams
from tests.benchmarks.gpu.bench import Bench, Rows, Run
from tests.benchmarks.gpu.device import device_seconds

_BYTES = 2
"""Of a bfloat16."""
_INT4_GROUP = 128


def measure_operations(bench: Bench) -> Rows:
    """Yield a row for each kernel and shape."""
    for num_tokens in bench.sizes.elementwise_tokens:
        yield from _elementwise(bench, num_tokens)
    for num_tokens in bench.sizes.linear_tokens:
        yield from _products(bench, num_tokens)
    for num_rows in bench.sizes.sample_rows:
        yield from _draws(bench, num_rows)
    yield from _copies(bench)


def _elementwise(bench: Bench, num_tokens: int) -> Rows:
    sizes, place = bench.sizes, bench.device.place
    norm = ops.norm_weight(torch.ones(sizes.hidden, dtype=torch.bfloat16, device=place), 1e-5)

    num_bytes = _BYTES * num_tokens * sizes.hidden
    copies = range(bench.num_copies(2 * num_bytes))
    xs = [_random(bench, num_tokens, sizes.hidden) for _ in copies]
    runs: list[Run] = [partial(rms_norm, x, norm) for x in xs]
    yield bench.row(f"rms_norm {num_tokens}", runs, 2 * num_bytes)
    runs = [partial(add_rms_norm, x, torch.zeros_like(x), norm) for x in xs]
    yield bench.row(f"add_rms_norm {num_tokens}", runs, 4 * num_bytes)

    num_bytes = 3 * _BYTES * num_tokens * sizes.ffn
    runs = [
        partial(silu_and_mul, _random(bench, num_tokens, 2 * sizes.ffn))
        for _ in range(bench.num_copies(num_bytes))
    ]
    yield bench.row(f"silu_and_mul {num_tokens}", runs, num_bytes)

    geometry = AttentionGeometry(
        -(-num_tokens // sizes.block_size), sizes.block_size, *sizes.heads, torch.bfloat16
    )
    slots = torch.arange(num_tokens, dtype=torch.int32, device=place)
    rotation = torch.ones(num_tokens, sizes.head_dim // 2, dtype=torch.complex64, device=place)
    shape = (num_tokens, sizes.num_kv_heads, sizes.group_size + 2, sizes.head_dim)
    # Every head is read and, somewhere, written; the factors are float32.
    num_bytes = 2 * _BYTES * num_tokens * sizes.num_kv_heads * shape[2] * sizes.head_dim
    num_bytes += 4 * num_tokens * sizes.head_dim
    runs = []
    for _ in range(bench.num_copies(num_bytes)):
        cache = torch.empty(geometry.cache_shape, dtype=torch.bfloat16, device=place)
        heads = _random(bench, *shape)
        runs.append(partial(rotate_and_store, heads, None, rotation, cache, slots))
    yield bench.row(f"rotate_and_store {num_tokens}", runs, num_bytes)


def _products(bench: Bench, num_tokens: int) -> Rows:
    """Yield the products with the largest matrix of a layer, kept in three ways."""
    sizes = bench.sizes
    num_inputs, num_outputs = sizes.hidden, sizes.ffn
    x = _random(bench, num_tokens, num_inputs)
    num_flops = 2 * num_tokens * num_inputs * num_outputs
    in_and_out = _BYTES * num_tokens * (num_inputs + num_outputs)

    def int4() -> Run:
        return partial(int4_linear, x, quantized_linear.pack(_int4_matrix(bench), None, x.dtype))

    def fp8() -> Run:
        matrix = round_to_fp8(_random(bench, num_outputs, num_inputs))
        return partial(fp8_linear, x, quantized_linear.pack(matrix, None, x.dtype))

    def bfloat16() -> Run:
        return partial(F.linear, x, _random(bench, num_outputs, num_inputs))

    ways: dict[str, tuple[Callable[[], Run], float]] = {
        "int4_linear": (int4, 0.5 + (2 + 1) / _INT4_GROUP),
        "fp8_linear": (fp8, 1.0),
        "bfloat16 by torch": (bfloat16, 2.0),
    }
    for name, (make, bytes_per_weight) in ways.items():
        num_bytes = bytes_per_weight * num_inputs * num_outputs
        runs = [make() for _ in range(bench.num_copies(num_bytes))]
        yield bench.row(f"{name} {num_tokens}", runs, num_bytes + in_and_out, num_flops)


def _int4_matrix(bench: Bench) -> QuantizedMatrix:
    shape, place = (bench.sizes.ffn, bench.sizes.hidden), bench.device.place
    groups = torch.arange(shape[1], device=place) // _INT4_GROUP
    of_groups = (shape[0], -(-shape[1] // _INT4_GROUP))
    values = torch.randint(16, shape, dtype=torch.uint8, device=place)
    scales = torch.full(of_groups, 0.01, dtype=torch.bfloat16, device=place)
    zeros = torch.full(of_groups, 8, dtype=torch.uint8, device=place)
    return QuantizedMatrix(StoredAs.INT4, values, scales, zeros, groups)


def _draws(bench: Bench, num_rows: int) -> Rows:
    """Yield draws over logits of random rows, which are peaked less than those of models."""
    vocab_size, place = bench.sizes.vocab_size, bench.device.place
    num_bytes = _BYTES * num_rows * vocab_size
    logits = [4 * _random(bench, num_rows, vocab_size) for _ in range(bench.num_copies(num_bytes))]
    ones = torch.ones(num_rows, device=place)
    ints = ones.int()
    for name, temperature, top_k, top_p in (
        ("greedy", 0.0, vocab_size, 1.0),
        ("temperature", 1.0, vocab_size, 1.0),
        ("top-k and top-p", 1.0, 50, 0.9),
    ):
        params = DrawParams(
            temperature=temperature * ones,
            top_k=top_k * ints,
            top_p=top_p * ones,
            min_p=0 * ones,
            seed=ints.long(),
            choice_index=ints,
            position=ints,
        )
        runs = [partial(sample, own, params) for own in logits]
        yield bench.row(f"sample {num_rows}, {name}", runs, num_bytes)


def _copies(bench: Bench) -> Rows:
    """Yield the copy of blocks in all layers; its list of moves has to get to the device first."""
    sizes, place = bench.sizes, bench.device.place
    count = sizes.num_copied_blocks
    geometry = AttentionGeometry(2 * count, sizes.block_size, *sizes.heads, torch.bfloat16)
    caches = [
        torch.zeros(geometry.cache_shape, dtype=torch.bfloat16, device=place)
        for _ in range(sizes.num_copied_layers)
    ]
    planes = block_planes(caches, place)
    moves = [(block, count + block) for block in range(count)]
    run = partial(copy_blocks, planes, planes, moves)
    seconds = device_seconds(bench.device, run, sizes.repeats)
    num_bytes = 2 * count * len(caches) * geometry.block_bytes
    yield bench.kernel_row(f"copy_blocks {count}", seconds, num_bytes)


def _random(bench: Bench, *shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.bfloat16, device=bench.device.place)
