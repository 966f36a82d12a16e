"""What the rows of a sampling launch ask for and what they get. All tensors on one device."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class DrawParams:
    """How each row is drawn. All [num_rows], contiguous."""

    temperature: Tensor
    """float32; 0: take the highest logit"""
    top_k: Tensor
    """int32; the size of the vocabulary: keep all"""
    top_p: Tensor
    """float32, above 0; 1: keep all"""
    min_p: Tensor
    """float32; 0: keep all"""
    seed: Tensor
    """int64"""
    choice_index: Tensor
    """int32"""
    position: Tensor
    """int32: how many tokens the request's output has"""


@dataclass(frozen=True, slots=True)
class SeenTokens:
    """What was seen before, and how much less likely that makes it."""

    repetition_penalty: Tensor
    """[num_rows] float32; 1: none"""
    presence_penalty: Tensor
    """[num_rows] float32; 0: none"""
    frequency_penalty: Tensor
    """[num_rows] float32; 0: none"""
    in_prompt: Tensor
    """[num_rows, ceil(vocab_size / 32)] int32: token i is bit i % 32 of word i // 32"""
    output_counts: Tensor
    """[num_rows, vocab_size] int32: how often each token is in the output"""


@dataclass(frozen=True, slots=True)
class DrawnTokens:
    """One token a row."""

    token_ids: Tensor
    """[num_rows] int32; -1 where the highest logit is not finite: one is NaN or inf, or all that
    are allowed are -inf"""
    logprobs: Tensor | None
    """[num_rows] float32, of the logits as they came in; NaN where there is no token"""
