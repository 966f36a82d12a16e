"""How byte-level tokenizers cut a text into words, by the name in `tokenizer.ggml.pre`.

Each entry does what tokenizer.json of the models that use it does. llama.cpp (its
src/llama-vocab.cpp) gives the same ids with two exceptions: it does not compose characters for
qwen2 (NFC), and takes combining marks for no letters in tekken. A wrong entry yields almost the
same ids and a model that is only a little worse, so an unknown name is refused.
"""

from collections.abc import Callable
from dataclasses import dataclass

from tokenizers import Regex, normalizers, pre_tokenizers

_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
_LLAMA3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2_WORDS = _LLAMA3_WORDS.replace(r"\p{N}{1,3}", r"\p{N}")
_TEKKEN_WORDS = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True, slots=True)
class PreTokenizer:
    """Cuts a text into words, and what else follows from its name."""

    build: Callable[[], pre_tokenizers.PreTokenizer]
    normalizer: normalizers.Normalizer | None = None
    ignore_merges: bool = False
    """A word that is a token stays one, even where no merges lead to it."""
    add_bos: bool = False
    """Texts begin with the begin token unless the file says otherwise."""


def _split(*patterns: str) -> Callable[[], pre_tokenizers.PreTokenizer]:
    """Cut by one pattern after the other, then spell the words in bytes."""

    def build() -> pre_tokenizers.PreTokenizer:
        splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns]
        spell = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        return pre_tokenizers.Sequence([*splits, spell])

    return build


def _gpt2() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.ByteLevel(add_prefix_space=False)


def _smollm() -> pre_tokenizers.PreTokenizer:
    # Digits come first: spaces before a digit are then cut as spaces at the end of a text.
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _gpt2()])


_LLAMA3 = PreTokenizer(_split(_LLAMA3_WORDS), ignore_merges=True, add_bos=True)
_QWEN2 = PreTokenizer(_split(_QWEN2_WORDS), normalizer=normalizers.NFC())

PRE_TOKENIZERS = {
    "default": PreTokenizer(_split(r"[\p{P}\$\+<=>\^~\|]+", _WORDS, r"\p{N}+", "[0-9][0-9][0-9]")),
    "gpt-2": PreTokenizer(_gpt2),
    "smollm": PreTokenizer(_smollm),
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "smaug-bpe": PreTokenizer(_split(_LLAMA3_WORDS)),
    "tekken": PreTokenizer(_split(_TEKKEN_WORDS), ignore_merges=True, add_bos=True),
    "qwen2": _QWEN2,
    "deepseek-r1-qwen": _QWEN2,
}
