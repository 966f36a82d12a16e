"""Transformers as the oracle: small random checkpoints, their logits and their greedy tokens."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

# Two logits nearer than this may swap between two right implementations of the same sums.
NEAR_TIE = 1e-3

_SMALL: dict[str, Any] = {
    "vocab_size": 131,  # divides by no number of ranks, so shards are padded
    "hidden_size": 48,
    "intermediate_size": 72,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,  # large, so that logits lie far apart
    "bos_token_id": None,
    "eos_token_id": 130,
    "pad_token_id": None,
}
_CLASSES: dict[str, tuple[Any, Any]] = {
    "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
    "mistral": (transformers.MistralConfig, transformers.MistralForCausalLM),
    "qwen2": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM),
    "qwen3": (transformers.Qwen3Config, transformers.Qwen3ForCausalLM),
}
_YARN = {"rope_type": "yarn", "rope_theta": 10_000.0, "factor": 4.0}
_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
CHECKPOINTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama-tied": ("llama", {"tie_word_embeddings": True}),
    "llama-biased": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama3-rope": ("llama", {"rope_parameters": _LLAMA3}),
    "linear-rope": (
        "llama",
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 5000.0, "factor": 2.0}},
    ),
    "yarn-rope": (
        "llama",
        {"rope_parameters": {**_YARN, "original_max_position_embeddings": 64}},
    ),
    "mistral": ("mistral", {"sliding_window": None, "head_dim": 16}),
    "mistral-windowed": ("mistral", {"sliding_window": 7}),
    "qwen2": ("qwen2", {"tie_word_embeddings": True}),
    "qwen2-windowed": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1},
    ),
    "qwen3": ("qwen3", {"head_dim": 12}),
}
"""Name to architecture and what differs from the small default."""


def make_checkpoint(folder: Path, name: str, **changes: Any) -> Path:
    """Save a random model of `CHECKPOINTS`, changed, to `folder`; return it."""
    architecture, differences = CHECKPOINTS[name]
    config_class, model_class = _CLASSES[architecture]
    torch.manual_seed(sum(map(ord, name)))
    model = model_class(config_class(**{**_SMALL, **differences, **changes}))
    for parameter_name, parameter in model.named_parameters():
        if parameter.ndim == 1:  # transformers starts norms at 1 and biases at 0: too easy
            offset = 0.0 if parameter_name.endswith("bias") else 1.0
            torch.nn.init.normal_(parameter, mean=offset, std=0.3)
    model.save_pretrained(folder)
    return folder


@dataclass(frozen=True, slots=True)
class GreedyToken:
    """The reference's choice and how far ahead of the next one it was."""

    token_id: int
    gap: float


class ReferenceModel:
    """A checkpoint run by transformers in float32, one whole sequence at a time."""

    def __init__(self, folder: Path) -> None:
        self._model: Any = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32
        )

    @torch.inference_mode()
    def logits(self, token_ids: Sequence[int]) -> Tensor:
        """Return the logits of every position: [tokens, vocab]."""
        logits: Tensor = self._model(torch.tensor([list(token_ids)])).logits[0]
        return logits

    @torch.inference_mode()
    def greedy(self, prompt: Sequence[int], num_tokens: int) -> list[GreedyToken]:
        """Return the tokens after `prompt`, each the most probable one."""
        tokens: list[GreedyToken] = []
        new_ids, past = list(prompt), None
        for _ in range(num_tokens):
            output = self._model(torch.tensor([new_ids]), past_key_values=past, use_cache=True)
            best, second = output.logits[0, -1].topk(2).values.tolist()
            tokens.append(GreedyToken(int(output.logits[0, -1].argmax()), best - second))
            new_ids, past = [tokens[-1].token_id], output.past_key_values
        return tokens


def assert_same_greedy(token_ids: Sequence[int], reference: Sequence[GreedyToken]) -> None:
    """Assert equal tokens up to the first near-tie, after which the texts differ rightly."""
    assert len(token_ids) == len(reference)
    for i, (token_id, expected) in enumerate(zip(token_ids, reference, strict=True)):
        if token_id != expected.token_id:
            assert expected.gap < NEAR_TIE, (
                f"token {i} is {token_id}, transformers has {expected.token_id}, "
                f"{expected.gap:.4f} ahead"
            )
            return
