"""Workloads of the benchmarks: the prompts, and how many tokens each asks for."""

import random
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Workload:
    """`num_requests` prompts, at most `concurrency` of them at once."""

    name: str
    concurrency: int
    num_requests: int
    prompt_tokens: int
    output_tokens: int
    mixed: bool = False
    """Draw both lengths per request: log-normal around the given ones, as chat traffic has."""


WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload("A", concurrency=1, num_requests=3, prompt_tokens=128, output_tokens=128),
        Workload("B", concurrency=16, num_requests=32, prompt_tokens=256, output_tokens=128),
        Workload("C", concurrency=64, num_requests=128, prompt_tokens=128, output_tokens=64),
        Workload("M16", 16, num_requests=48, prompt_tokens=96, output_tokens=64, mixed=True),
        Workload("M64", 64, num_requests=192, prompt_tokens=96, output_tokens=64, mixed=True),
    )
}


@dataclass(frozen=True, slots=True)
class Ask:
    """One request of a workload."""

    prompt_token_ids: list[int]
    max_tokens: int


def make_asks(workload: Workload, vocab_size: int, seed: int) -> list[Ask]:
    """Random prompts (a fresh seed per repetition leaves no prefix to reuse by accident)."""
    draw = random.Random(seed)
    asks = []
    for _ in range(workload.num_requests):
        prompt, output = workload.prompt_tokens, workload.output_tokens
        if workload.mixed:
            prompt = min(1024, max(8, round(draw.lognormvariate(0, 0.9) * prompt)))
            output = min(512, max(4, round(draw.lognormvariate(0, 0.9) * output)))
        # The first 1000 ids hold special tokens and bytes.
        ids = [draw.randrange(1000, vocab_size) for _ in range(prompt)]
        asks.append(Ask(ids, output))
    return asks
