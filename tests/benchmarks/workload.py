"""Workloads of the benchmarks: the prompts, and how many tokens each asks for."""

import json
import random
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

WORD = re.compile("Ġ[A-Za-z]+")
"""A token that is a space and letters, in the spelling of byte-level vocabularies."""


@dataclass(frozen=True, slots=True)
class Workload:
    """`num_requests` prompts, at most `concurrency` of them at once."""

    name: str
    concurrency: int
    num_requests: int
    prompt_tokens: int
    output_tokens: int
    shared_tokens: int = 0
    """So many tokens, the same for all requests, come before the prompt's own."""
    mixed: bool = False
    """Draw both lengths per request: log-normal around the given ones, as chat traffic has."""

    @property
    def context_tokens(self) -> int:
        """The longest sequence that a request may become."""
        if self.mixed:
            return MAX_MIXED_PROMPT + MAX_MIXED_OUTPUT
        return self.shared_tokens + self.prompt_tokens + self.output_tokens


MAX_MIXED_PROMPT = 1024
MAX_MIXED_OUTPUT = 512

WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload("A", concurrency=1, num_requests=3, prompt_tokens=128, output_tokens=128),
        Workload("B", concurrency=16, num_requests=32, prompt_tokens=256, output_tokens=128),
        Workload("C", concurrency=64, num_requests=128, prompt_tokens=128, output_tokens=64),
        Workload("D", 16, num_requests=48, prompt_tokens=64, output_tokens=32, shared_tokens=512),
        Workload("E", concurrency=4, num_requests=8, prompt_tokens=2048, output_tokens=16),
        Workload("F", concurrency=32, num_requests=32, prompt_tokens=128, output_tokens=512),
        Workload("M16", 16, num_requests=48, prompt_tokens=96, output_tokens=64, mixed=True),
        Workload("M64", 64, num_requests=192, prompt_tokens=96, output_tokens=64, mixed=True),
    )
}
WARM_UP = Workload("warm-up", concurrency=4, num_requests=8, prompt_tokens=64, output_tokens=8)


@dataclass(frozen=True, slots=True)
class Ask:
    """One request of a workload."""

    prompt_token_ids: list[int]
    max_tokens: int
    text: str = ""
    """The same prompt for servers that take no token ids."""


def read_words(model: Path) -> dict[int, str]:
    """The tokens of a model folder that are whole words.

    A prompt of them is the same tokens again when a server is given its text.
    """
    vocabulary = json.loads((model / "tokenizer.json").read_text())["model"]["vocab"]
    return {
        token_id: " " + token[1:] for token, token_id in vocabulary.items() if WORD.fullmatch(token)
    }


def make_asks(workload: Workload, words: Mapping[int, str], seed: int) -> list[Ask]:
    """Random prompts. A fresh seed per repetition leaves no prefix to reuse but the shared one."""
    draw = random.Random(f"{workload.name} {seed}")
    ids = sorted(words)
    shared = draw.choices(ids, k=workload.shared_tokens)
    asks = []
    for _ in range(workload.num_requests):
        prompt, output = workload.prompt_tokens, workload.output_tokens
        if workload.mixed:
            prompt = min(MAX_MIXED_PROMPT, max(8, round(draw.lognormvariate(0, 0.9) * prompt)))
            output = min(MAX_MIXED_OUTPUT, max(4, round(draw.lognormvariate(0, 0.9) * output)))
        token_ids = shared + draw.choices(ids, k=prompt)
        asks.append(Ask(token_ids, output, "".join(map(words.__getitem__, token_ids))))
    return asks
