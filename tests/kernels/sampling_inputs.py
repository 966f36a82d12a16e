"""What tests of drawing tokens are given: logits, what rows ask for, tokens seen before."""

from collections.abc import Sequence
from dataclasses import fields

import torch
from torch import Tensor

from kernels.sampling_rows import DrawParams, SeenTokens

Values = float | Sequence[float]


def random_logits(
    num_rows: int, vocab_size: int, dtype: torch.dtype = torch.float32, *, seed: int = 0
) -> Tensor:
    """Normal ones with standard deviation 3: a few tokens have most of the weight."""
    generator = torch.Generator().manual_seed(seed)
    return (3 * torch.randn(num_rows, vocab_size, generator=generator)).to(dtype)


def make_params(
    num_rows: int,
    vocab_size: int,
    *,
    temperature: Values = 1.0,
    top_k: Values | None = None,
    top_p: Values = 1.0,
    min_p: Values = 0.0,
    seed: Values | None = None,
    choice_index: Values = 0,
    position: Values | None = None,
) -> DrawParams:
    """What the rows ask for; each value is that of all rows, or has one for each."""

    def spread(values: Values, dtype: torch.dtype) -> Tensor:
        return torch.tensor(values, dtype=dtype).expand(num_rows).contiguous()

    rows = list(range(num_rows))
    return DrawParams(
        temperature=spread(temperature, torch.float32),
        top_k=spread(vocab_size if top_k is None else top_k, torch.int32),
        top_p=spread(top_p, torch.float32),
        min_p=spread(min_p, torch.float32),
        seed=spread([7 * row - 3 for row in rows] if seed is None else seed, torch.int64),
        choice_index=spread(choice_index, torch.int32),
        position=spread(rows if position is None else position, torch.int32),
    )


def take_rows(params: DrawParams, rows: Sequence[int]) -> DrawParams:
    """The same asks in another batch."""
    index = torch.tensor(rows, device=params.seed.device)
    return DrawParams(*(getattr(params, field.name)[index] for field in fields(params)))


def params_on(device: torch.device, params: DrawParams) -> DrawParams:
    """The same on a device."""
    return DrawParams(*(getattr(params, field.name).to(device) for field in fields(params)))


def seen_on(device: torch.device, seen: SeenTokens) -> SeenTokens:
    """The same on a device."""
    return SeenTokens(*(getattr(seen, field.name).to(device) for field in fields(seen)))


def random_bits(num_rows: int, vocab_size: int, share: float, *, seed: int = 1) -> Tensor:
    """Bool, of which about so many are set, and one in each row for certain."""
    generator = torch.Generator().manual_seed(seed)
    bits = torch.rand(num_rows, vocab_size, generator=generator) < share
    bits[:, vocab_size // 2] = True
    return bits


def pack_bits(bits: Tensor) -> Tensor:
    """[num_rows, n] bool to [num_rows, ceil(n / 32)] int32."""
    excess = -bits.shape[1] % 32
    words = torch.nn.functional.pad(bits, (0, excess)).view(len(bits), -1, 32).long()
    return (words << torch.arange(32)).sum(2).to(torch.int32)


def random_seen(num_rows: int, vocab_size: int) -> SeenTokens:
    """Another penalty in each row, none in the first."""
    generator = torch.Generator().manual_seed(2)
    counts = torch.randint(-9, 4, (num_rows, vocab_size), generator=generator).clamp(min=0)
    rows = torch.arange(num_rows, dtype=torch.float32)
    return SeenTokens(
        repetition_penalty=1 + rows / 4,
        presence_penalty=rows / 2,
        frequency_penalty=-rows / 3,
        in_prompt=pack_bits(random_bits(num_rows, vocab_size, 0.2, seed=3)),
        output_counts=counts.to(torch.int32),
    )
