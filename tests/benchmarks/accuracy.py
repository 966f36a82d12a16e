"""What each form of weights costs in accuracy, on texts that are on every machine.

`python -m tests.benchmarks.accuracy` prints a Markdown table: each form beside the checkpoint as it
is in float32, by the perplexity of three texts, how often both find the same token likeliest after
the same text, and after how many tokens their greedy continuations part. Everything is computed on
CPU, in float32 unless the form says otherwise: checkpoints that come quantised are dequantised at
load there, to the numbers that CUDA multiplies, and attention over a KV cache in float8, which the
CPU has not, is that of `kernels.reference`.
"""

import argparse
import statistics
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any
from unittest.mock import patch

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
from kernels import gpu_library, ops
from kernels.layout import AttentionGeometry
from kernels.reference import ReferencePlanner
from tests.benchmarks.quantized_forms import FORMS, write_form

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

TEXTS = {
    "prose": PROSE,
    "licence": (ROOT / "LICENSE").read_text(),
    "manual": topics["execmodel"] + topics["import"],  # of Python itself
}
EXACT: Mapping[str, Any] = {"dtype": "float32"}
SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "computed in bfloat16": {"dtype": "bfloat16"},
    "computed in float16": {"dtype": "float16"},
    "w8a8": {**EXACT, "quantization": "w8a8"},
    "KV in fp8": {**EXACT, "kv_cache_dtype": "fp8"},
}
"""What is asked of the engine beside the checkpoint as it is."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What a model finds of the next token at each position of its windows."""

    losses: Tensor
    """Of the token that came, [positions]."""
    likeliest: Tensor
    """[positions]"""

    @property
    def perplexity(self) -> float:
        """Return the perplexity over all positions."""
        return float(self.losses.mean().exp())

    def agreement(self, other: "Reading") -> float:
        """Return the share of positions whose likeliest token is the same."""
        return float((self.likeliest == other.likeliest).float().mean())


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model makes of a text."""

    reading: Reading
    continuations: list[list[int]]
    """Greedy tokens after the beginning of each window."""


def windows_of(folder: Path, text: str) -> list[list[int]]:
    """Token ids of a text, in windows; what does not fill one is left out."""
    token_ids = Tokenizer.from_folder(folder).encode(text)
    whole = range(0, len(token_ids) - WINDOW + 1, WINDOW)
    return [token_ids[first : first + WINDOW] for first in whole]


def read_windows(folder: Path, windows: Sequence[list[int]], **settings: Any) -> Reading:
    """Read the windows with a model."""
    config = EngineConfig(
        model_path=folder,
        model_name="accuracy",
        device="cpu",
        kv_cache_bytes=64 << 20,
        **settings,
    )
    runner, _ = build_runner(config, TensorParallel.single())
    step = example_step([WINDOW], config.block_size, num_rows=WINDOW)
    losses, likeliest = [], []
    for window in windows:
        token_ids = np.array(window, dtype=np.int32)
        rows = runner.forward(replace(step, token_ids=token_ids))
        assert rows is not None
        logits, targets = rows[:-1].float(), torch.from_numpy(token_ids[1:]).long()
        losses.append(torch.nn.functional.cross_entropy(logits, targets, reduction="none"))
        likeliest.append(logits.argmax(-1))
    return Reading(torch.cat(losses), torch.cat(likeliest))


def greedy(
    folder: Path, prompts: list[list[int]], num_tokens: int, **settings: Any
) -> list[list[int]]:
    """Greedy tokens of each prompt."""
    params = SamplingParams(temperature=0, max_tokens=num_tokens, ignore_eos=True)
    with LLM(folder, device="cpu", **settings) as llm:
        generations = llm.generate(list(prompts), params)
    return [list(generation.choices[0].token_ids) for generation in generations]


def common_length(left: Sequence[int], right: Sequence[int]) -> int:
    """Tokens before the first that differs."""
    differing = (i for i, (a, b) in enumerate(zip(left, right, strict=True)) if a != b)
    return next(differing, len(left))


def answers(folder: Path, num_tokens: int, **settings: Any) -> dict[str, Answer]:
    """What a model makes of each text."""
    found = {}
    for name, text in TEXTS.items():
        windows = windows_of(folder, text)
        prompts = [window[:PROMPT_TOKENS] for window in windows]
        found[name] = Answer(
            read_windows(folder, windows, **settings),
            greedy(folder, prompts, num_tokens, **settings),
        )
    return found


def row(name: str, found: Mapping[str, Answer], exact: Mapping[str, Answer]) -> str:
    """One line of the table: a form beside the exact model."""
    changes, agreements, lengths = [], [], []
    for text, answer in found.items():
        own, other = answer.reading, exact[text].reading
        changes.append(f"{own.perplexity / other.perplexity - 1:+.1%}")
        agreements.append(f"{own.agreement(other):.1%}")
        pairs = zip(answer.continuations, exact[text].continuations, strict=True)
        lengths += [common_length(*pair) for pair in pairs]
    same = f"{statistics.mean(lengths):.0f}"
    return f"| {name} | {' | '.join(changes)} | {' | '.join(agreements)} | {same} |"


@contextmanager
def _attention_of(settings: Mapping[str, Any]) -> Iterator[None]:
    """Let the CPU keep KV in float8 where the settings ask for it."""

    def planner(
        geometry: AttentionGeometry, _windows: object, device: torch.device
    ) -> ReferencePlanner:
        return ReferencePlanner(geometry, device)

    if "kv_cache_dtype" not in settings:
        yield
        return
    with (
        patch.object(ops, "attention_planner", planner),
        patch.object(gpu_library, "can_cache_float8", lambda _device: True),
    ):
        yield


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--tokens", type=int, default=64, help="of each greedy continuation")
    parser.add_argument("--only", default="", help="the forms whose names hold this")
    parser.add_argument("--cache-dir", type=Path, default=Path.home() / ".cache" / "pageray")
    options = parser.parse_args()
    plain = resolve_model(options.model, cache_dir=options.cache_dir)
    exact = answers(plain, options.tokens, **EXACT)
    texts = [f"{name} {found.reading.perplexity:.2f}" for name, found in exact.items()]
    sizes = [len(found.reading.losses) for found in exact.values()]
    print(f"positions: {sizes}, continuations: {options.tokens} tokens each")
    print(f"| form | {' | '.join(texts)} | {' | '.join(TEXTS)} | greedy |")
    print("|---" * (2 * len(TEXTS) + 2) + "|")
    for name, settings in SETTINGS.items():
        if options.only in name:
            with _attention_of(settings):
                found = answers(plain, options.tokens, **settings)
            print(row(name, found, exact), flush=True)
    for name, form in FORMS.items():
        if options.only in name:
            with tempfile.TemporaryDirectory() as scratch:
                folder = write_form(plain, Path(scratch) / "form", form)
                print(row(name, answers(folder, options.tokens, **EXACT), exact), flush=True)


if __name__ == "__main__":
    main()
