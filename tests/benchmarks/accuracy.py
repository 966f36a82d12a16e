"""What quantization costs in accuracy, on texts of the repository.

`python -m tests.benchmarks.accuracy` tells the perplexity of float32 and of the quantized model,
how often both find the same token likeliest after the same text, and after how many tokens their
greedy continuations part.
"""

import argparse
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from engine import LLM, SamplingParams
from engine.activation_memory import example_step
from engine.build import build_runner
from engine.config import EngineConfig
from engine.model_store import DEFAULT_MODEL, resolve_model
from engine.parallel import TensorParallel
from engine.tokenizer import Tokenizer

ROOT = Path(__file__).parents[2]
WINDOW = 256  # tokens that are read at once, from nothing
PROMPT_TOKENS = 32
PROSE = """\
The ferry left at six in the morning, before the fog had lifted from the harbour. On deck stood a
dozen passengers with their collars turned up: two students with bicycles, a woman who sold honey
on the market of the other side, and an old engineer who had built the lighthouse forty years ago.
He told anybody who would listen how the lamp had come in three crates from the mainland, and how
one of them had fallen into the sea. It took them a week to find it. A diver went down every day
at low tide, and on the last day, when the money had run out, he came up with a piece of glass as
large as a plate. The captain knew the story and smiled. He had other things to think of. The wind
was to turn in the afternoon, and if it did, he would have to stay on the island overnight. His
daughter had her birthday, and he had promised to be home for dinner. So he looked at the clouds,
tapped the barometer and asked the engine room for a little more speed. Water boils at one hundred
degrees at sea level, but on a mountain it boils earlier, because the air above it weighs less.
That is why a cook in the Andes needs more time for potatoes than one in Lima. The first computers
filled whole rooms and were programmed by moving cables; a modern telephone computes a million
times faster and fits in a pocket. To make bread, mix flour, water, salt and yeast, and let the
dough rest until it has doubled in size. Then fold it, shape it, and bake it in a hot oven for
about forty minutes. When you tap the bottom and it sounds hollow, the bread is done. Let it cool
before you cut the first slice.
"""


@dataclass(frozen=True, slots=True)
class Accuracy:
    """A quantized model beside float32 on the same tokens."""

    perplexity: float
    quantized_perplexity: float
    agreement: float
    """Share of positions whose likeliest next token is the same."""


def windows_of(folder: Path, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of the texts, in windows; what does not fill one is left out."""
    tokenizer = Tokenizer.from_folder(folder)
    windows = []
    for text in texts:
        token_ids = tokenizer.encode(text)
        whole = range(0, len(token_ids) - WINDOW + 1, WINDOW)
        windows += [token_ids[first : first + WINDOW] for first in whole]
    return windows


def logits_of(folder: Path, windows: Sequence[list[int]], quantization: str | None) -> Tensor:
    """Logits of all windows: [windows, WINDOW, vocab]."""
    config = EngineConfig(
        model_path=folder,
        model_name="accuracy",
        device="cpu",
        dtype="float32",
        kv_cache_bytes=64 << 20,
        quantization=quantization,
    )
    runner, _ = build_runner(config, TensorParallel.single())
    step = example_step([WINDOW], config.block_size, num_rows=WINDOW)
    logits = []
    for window in windows:
        rows = runner.forward(replace(step, token_ids=np.array(window, dtype=np.int32)))
        assert rows is not None
        logits.append(rows.clone())
    return torch.stack(logits)


def measure(folder: Path, texts: Sequence[str], quantization: str) -> Accuracy:
    """Read the texts with both models."""
    windows = windows_of(folder, texts)
    exact = logits_of(folder, windows, None)
    quantized = logits_of(folder, windows, quantization)
    same = (exact.argmax(-1) == quantized.argmax(-1)).float().mean()
    return Accuracy(_perplexity(exact, windows), _perplexity(quantized, windows), float(same))


def _perplexity(logits: Tensor, windows: Sequence[list[int]]) -> float:
    targets = torch.tensor(windows)[:, 1:]
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), targets.flatten())
    return float(loss.exp())


def greedy(
    folder: Path, prompts: list[list[int]], num_tokens: int, quantization: str | None
) -> list[list[int]]:
    """Greedy tokens of each prompt."""
    params = SamplingParams(temperature=0, max_tokens=num_tokens, ignore_eos=True)
    with LLM(folder, device="cpu", dtype="float32", quantization=quantization) as llm:
        generations = llm.generate(list(prompts), params)
    return [list(generation.choices[0].token_ids) for generation in generations]


def common_length(left: Sequence[int], right: Sequence[int]) -> int:
    """Tokens before the first that differs."""
    differing = (i for i, (a, b) in enumerate(zip(left, right, strict=True)) if a != b)
    return next(differing, len(left))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--quantization", default="w8a8")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--cache-dir", type=Path, default=Path.home() / ".cache" / "pageray")
    options = parser.parse_args()
    folder = resolve_model(options.model, cache_dir=options.cache_dir)
    for name, text in {"prose": PROSE, "LICENSE": (ROOT / "LICENSE").read_text()}.items():
        accuracy = measure(folder, [text], options.quantization)
        prompts = [window[:PROMPT_TOKENS] for window in windows_of(folder, [text])]
        exact = greedy(folder, prompts, options.tokens, None)
        quantized = greedy(folder, prompts, options.tokens, options.quantization)
        lengths = [common_length(*pair) for pair in zip(exact, quantized, strict=True)]
        print(
            f"{name}: perplexity {accuracy.perplexity:.3f} -> {accuracy.quantized_perplexity:.3f} "
            f"({accuracy.quantized_perplexity / accuracy.perplexity - 1:+.1%}), "
            f"likeliest token the same at {accuracy.agreement:.1%}, greedy tokens the same for "
            f"{statistics.mean(lengths):.0f} of {options.tokens} (mean of {len(lengths)})"
        )


if __name__ == "__main__":
    main()
