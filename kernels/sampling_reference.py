"""Draws tokens in plain torch, on any device: the oracle of kernels/gpu/sample.py.

What a draw does, by which it may be reproduced elsewhere:

1. Penalties as in engine/logits_processors.py; then tokens that are not allowed get -inf.
2. A row with temperature 0, or top-k 1, takes the highest logit, of equal ones the lowest id.
3. In others a token weighs exp((logit - highest logit) / temperature) in float32, and min-p, top-k
   and top-p keep tokens as in engine/token_draw.py.
4. Of the kept tokens the one drawn has the highest weight / noise, of equal ones the lowest id.
   Noise is exponential, so a token's chance is its share of the weight: the Gumbel-max trick
   (C. J. Maddison, D. Tarlow, T. Minka, "A* sampling", NIPS 2014) without its logarithms.

The noise of token i is -log(1 - v) with v = (word + 0.5) / 2**32 in float32, at most 1 - 2**-24,
where word is number i % 4 of those that Philox4x32-10 (kernels/philox.py) makes of

    key       seed as 64-bit two's complement: low word, high word
    counter   position, i // 4, choice index, 1

The last counter word keeps it apart from the numbers of engine/random.py. A row depends on its own
logits, params and seed, not on the rows beside it. Two implementations may differ where weights,
sums or noise are equal but for rounding.
"""

import numpy as np
import torch
from torch import Tensor

from kernels.philox import philox4x32, round_keys
from kernels.sampling_rows import DrawnTokens, DrawParams, SeenTokens

MIN_TEMPERATURE = 1e-6
_DOMAIN = 1
_MAX_FRACTION = 1 - 2.0**-24


def sample(
    logits: Tensor,
    params: DrawParams,
    allowed: Tensor | None = None,
    seen: SeenTokens | None = None,
    *,
    with_logprobs: bool = False,
) -> DrawnTokens:
    """Do what `kernels.gpu.sample.sample` does."""
    vocab_size = logits.shape[1]
    changed = logits.float()
    if seen is not None:
        changed = penalise(changed, seen)
    if allowed is not None:
        changed = changed.masked_fill(~unpack_bits(allowed, vocab_size), -torch.inf)
    highest = changed.amax(1, keepdim=True)
    is_valid = highest[:, 0].isfinite()
    temperature = params.temperature.clamp(min=MIN_TEMPERATURE)[:, None]
    # Zeros for a row without a token: what becomes of it does not matter.
    changed = torch.where(is_valid[:, None], changed, 0.0)
    highest = torch.where(is_valid[:, None], highest, 0.0)
    weights = ((changed - highest) / temperature).exp()
    keys = torch.where(find_kept(weights, params), weights / noise(params, vocab_size), 0.0)
    is_greedy = (params.temperature <= 0) | (params.top_k == 1)
    token_ids = torch.where(is_greedy, first_highest(changed), first_highest(keys))
    token_ids = torch.where(is_valid, token_ids, -1)
    logprobs = None
    if with_logprobs:
        own = logits.float().log_softmax(1).gather(1, token_ids.clamp(min=0)[:, None])[:, 0]
        logprobs = torch.where(is_valid, own, torch.nan)
    return DrawnTokens(token_ids.int(), logprobs)


def penalise(logits: Tensor, seen: SeenTokens) -> Tensor:
    """Make tokens that were seen before less likely: [num_rows, vocab_size] float32 anew."""
    in_output = seen.output_counts > 0
    is_seen = in_output | unpack_bits(seen.in_prompt, logits.shape[1])
    by = torch.where(is_seen, seen.repetition_penalty[:, None], 1.0)
    logits = torch.where(logits > 0, logits / by, logits * by)
    subtracted = seen.output_counts * seen.frequency_penalty[:, None]
    return logits - (subtracted + in_output * seen.presence_penalty[:, None])


def unpack_bits(words: Tensor, num_bits: int) -> Tensor:
    """Unpack [num_rows, ceil(num_bits / 32)] int32 to [num_rows, num_bits] bool."""
    bits = (words[:, :, None] >> torch.arange(32, device=words.device)) & 1
    return bits.bool().flatten(1)[:, :num_bits]


def find_kept(weights: Tensor, params: DrawParams) -> Tensor:
    """Tell what min-p, top-k and top-p keep: [num_rows, vocab_size] float32 to bool."""
    weights = torch.where(weights < params.min_p[:, None], 0.0, weights)
    ranked, order = weights.sort(dim=1, descending=True, stable=True)
    rank = torch.arange(weights.shape[1], device=weights.device)
    masses = (ranked * (rank < params.top_k[:, None])).double()
    ends = masses.cumsum(1)
    target = params.top_p[:, None] * ends[:, -1:].float()
    is_kept = (masses > 0) & ((ends - masses < target) | (params.top_p[:, None] >= 1))
    is_kept |= rank == 0
    return torch.zeros_like(is_kept).scatter(1, order, is_kept)


def noise(params: DrawParams, vocab_size: int) -> Tensor:
    """Return each token's noise, [num_rows, vocab_size] float32."""
    num_blocks = -(-vocab_size // 4)
    keys = np.repeat(round_keys(params.seed.tolist()), num_blocks, axis=2)
    pairs = torch.stack((params.position, params.choice_index)).cpu().numpy()
    even = np.repeat(pairs.astype(np.uint64), num_blocks, axis=1)
    blocks = np.tile(np.arange(num_blocks, dtype=np.uint64), len(params.seed))
    odd = np.stack((blocks, np.full_like(blocks, _DOMAIN)))
    words = np.stack(philox4x32(keys, even, odd), axis=1).astype(np.float32)
    numbers = torch.from_numpy(words.reshape(len(params.seed), -1)[:, :vocab_size])
    fractions = ((numbers + 0.5) * 2.0**-32).clamp(max=_MAX_FRACTION)
    return -torch.log1p(-fractions).to(params.seed.device)


def first_highest(values: Tensor) -> Tensor:
    """Find the first column that holds the highest value: [num_rows, n] to [num_rows] int64."""
    columns = torch.arange(values.shape[1], device=values.device)
    is_highest = values == values.amax(1, keepdim=True)
    return torch.where(is_highest, columns, values.shape[1]).amin(1)
