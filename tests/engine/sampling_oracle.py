"""The sampler again, one row at a time in plain Python, as its modules describe it."""

import math

import torch
from torch import Tensor

from engine.random import UniformNumbers
from engine.request import Request
from engine.sampling_params import SamplingParams

PROMPT = [3, 5, 5, 8]
STOP_TOKEN_IDS = frozenset({2, 7})


def make_request(
    name: str = "a", output: list[int] | None = None, *, choice_index: int = 0, **params: object
) -> Request:
    """A request that has `output` behind it; the seed is 0 unless given."""
    sampling = SamplingParams(**params)  # type: ignore[arg-type]
    return Request(
        request_id=name,
        choice_index=choice_index,
        prompt_token_ids=PROMPT,
        params=sampling,
        seed=sampling.seed or 0,
        max_tokens=100,
        stop_token_ids=STOP_TOKEN_IDS,
        token_ids=PROMPT + (output or []),
    )


def expected_token(logits: Tensor, request: Request) -> int:
    """The token of one row; logits [vocab_size]."""
    values = processed_logits(logits, request)
    params = request.params
    ranked = sorted(range(len(values)), key=lambda i: (-values[i], i))
    if params.temperature == 0 or params.top_k == 1:
        return ranked[0]
    weights = weigh(values, params.temperature)
    kept = kept_tokens(weights, params)
    number = float(
        UniformNumbers([request.seed], [request.choice_index]).at([request.num_output_tokens])[0]
    )
    target = number * sum(weights[i] for i in kept)
    end = 0.0
    for token_id in sorted(kept):
        end += weights[token_id]
        if end > target:
            return token_id
    raise AssertionError("the numbers are below 1")


def processed_logits(logits: Tensor, request: Request) -> list[float]:
    """Bias, minimum length, penalties; in float32 as the sampler, so that ties stay ties."""
    params = request.params
    values = logits.float().clone()
    for token_id, bias in params.logit_bias.items():
        values[token_id] += bias
    if request.num_output_tokens < params.min_tokens:
        values[list(request.stop_token_ids)] = -math.inf
    output = request.token_ids[request.num_prompt_tokens :]
    for token_id in set(request.token_ids):
        value = values[token_id]
        by = params.repetition_penalty
        value = value / by if value > 0 else value * by
        count = output.count(token_id)
        values[token_id] = (
            value - params.frequency_penalty * count - params.presence_penalty * (count > 0)
        )
    return list(map(float, values.tolist()))


def weigh(values: list[float], temperature: float) -> list[float]:
    """Step 1 of engine/token_draw.py."""
    scaled = (torch.tensor(values) - max(values)) / torch.tensor(max(temperature, 1e-6))
    return list(map(float, scaled.exp().tolist()))


def kept_tokens(weights: list[float], params: SamplingParams) -> list[int]:
    """Step 2 of engine/token_draw.py, by rank."""
    ranked = sorted(range(len(weights)), key=lambda i: (-weights[i], i))
    kept = [i for i in ranked if weights[i] >= params.min_p]
    if params.top_k > 0:
        kept = kept[: params.top_k]
    if params.top_p == 1:
        return kept
    total = math.fsum(weights[i] for i in kept)
    run: list[int] = []
    mass = 0.0
    for i in kept:
        if run and mass >= params.top_p * total:
            break
        run.append(i)
        mass += weights[i]
    return run
