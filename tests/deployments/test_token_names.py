"""Texts and bytes of single tokens, for each family of tokenizers."""

import tokenizers
from tokenizers import decoders, models

from deployments.token_names import TokenNames, finite_logprob
from engine.tokenizer import Tokenizer


def test_bytes_of_byte_level_tokens_join_to_the_text(tokenizer: Tokenizer) -> None:
    texts = TokenNames(tokenizer)
    for text in ("Once upon a time", "naïve 東京 🗼", "\x00\n\t", "<|im_end|>"):
        token_ids = tokenizer.encode(text)
        found = [texts.utf8(token_id) for token_id in token_ids]
        assert b"".join(bytes(part or []) for part in found).decode() == text
    assert texts.text(tokenizer.encode("🗼")[0]) == "\N{REPLACEMENT CHARACTER}"


def test_sentencepiece_tokens_keep_their_space_and_their_bytes() -> None:
    vocab = {"<unk>": 0, "▁the": 1, "the": 2, "<0xE2>": 3, "▁": 4}
    backend = tokenizers.Tokenizer(models.BPE(vocab, [], unk_token="<unk>", byte_fallback=True))
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    texts = TokenNames(Tokenizer(backend))
    assert texts.text(1) == " the"
    assert texts.text(2) == "the"
    assert texts.text(4) == " "
    assert texts.utf8(1) == list(b" the")
    assert texts.utf8(3) == [0xE2]


def test_unknown_token_has_no_text(tokenizer: Tokenizer) -> None:
    assert TokenNames(tokenizer).text(10**6) == ""


def test_impossible_token_has_a_finite_logprob() -> None:
    assert finite_logprob(float("-inf")) == -9999.0
    assert finite_logprob(-1.5) == -1.5
