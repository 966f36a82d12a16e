"""Tokenizers built from GGUF metadata."""

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("gguf", reason="gguf is not installed here")

from gguf import TokenType

from engine.errors import InvalidModel
from engine.gguf_reader import GgufFile
from engine.gguf_tokenizer import build_tokenizer, tokenizer_config
from tests.engine.gguf_checkpoint import byte_tokens

NORMAL, CONTROL, USER = TokenType.NORMAL, TokenType.CONTROL, TokenType.USER_DEFINED


def gguf_file(**tokenizer: Any) -> GgufFile:
    metadata = {f"tokenizer.ggml.{name}": value for name, value in tokenizer.items()}
    metadata["general.architecture"] = "llama"
    return GgufFile(Path("model.gguf"), metadata, {})


def byte_level(pre: str | None, merges: list[str], **more: Any) -> GgufFile:
    tokens = [*byte_tokens(), *(merge.replace(" ", "") for merge in merges), "<s>", "<tool>"]
    types = [NORMAL] * (len(tokens) - 2) + [CONTROL, USER]
    more |= {} if pre is None else {"pre": pre}
    return gguf_file(model="gpt2", tokens=tokens, token_type=types, merges=merges, **more)


def tokens(file: GgufFile, text: str, add_special_tokens: bool = False) -> list[str]:
    return list(build_tokenizer(file).encode(text, add_special_tokens=add_special_tokens).tokens)


@pytest.mark.parametrize(
    ("pre", "words"),
    [
        # Spaces before a digit stay together for smollm alone, which cuts digits first.
        ("smollm", ["x", "ĠĠ", "1", "2", "'", "L", "L", "Ċ", "Ġ", "3", "."]),
        ("gpt-2", ["x", "Ġ", "Ġ12", "'", "L", "L", "Ċ", "Ġ3", "."]),
        ("default", ["x", "Ġ", "Ġ", "12", "'", "L", "L", "Ċ", "Ġ", "3", "."]),
        ("qwen2", ["x", "Ġ", "Ġ", "1", "2", "'LL", "Ċ", "Ġ", "3", "."]),
        ("llama-bpe", ["x", "Ġ", "Ġ", "12", "'LL", "Ċ", "Ġ", "3", "."]),
        ("tekken", ["x", "Ġ", "Ġ", "1", "2", "'LL", "Ċ", "Ġ", "3", "."]),
    ],
)
def test_words_are_cut_as_the_pre_tokenizer_says(pre: str, words: list[str]) -> None:
    merges = ["Ġ Ġ", "1 2", "Ġ 12", "Ġ 3", "' L", "'L L"]
    assert tokens(byte_level(pre, merges), "x  12'LL\n 3.") == words


def test_missing_pre_tokenizer_means_default() -> None:
    merges = ["1 2", "12 3", "123 4"]
    assert tokens(byte_level(None, merges), "1234") == tokens(byte_level("default", merges), "1234")


def test_unknown_pre_tokenizer_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InvalidModel, match=r"'bloom'.*\n.*llama-bpe.*qwen2.*smollm"):
        build_tokenizer(byte_level("bloom", []))


def test_unknown_kind_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InvalidModel, match=r"'bert'.*\n.*gpt2, llama"):
        build_tokenizer(gguf_file(model="bert", tokens=["a"]))


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"merges": ["a zz"]}, "merges that do not fit"),
        ({"merges": None}, "no tokenizer.ggml.merges"),
        ({"token_type": [1]}, "1 tokenizer.ggml.token_type"),
        ({"tokens": ["a", "a"], "token_type": [1, 1]}, "same token twice"),
    ],
)
def test_broken_vocabulary_is_refused(changes: dict[str, Any], cause: str) -> None:
    file = byte_level("gpt-2", [])
    metadata = file.metadata | {f"tokenizer.ggml.{key}": value for key, value in changes.items()}
    with pytest.raises(InvalidModel, match=cause):
        build_tokenizer(GgufFile(file.path, metadata, {}))


def test_control_tokens_are_special_and_user_defined_ones_are_text() -> None:
    tokenizer = build_tokenizer(byte_level("gpt-2", []))
    ids = tokenizer.encode("a<s><tool>b").ids
    assert [tokenizer.id_to_token(token_id) for token_id in ids] == ["a", "<s>", "<tool>", "b"]
    assert tokenizer.decode(ids) == "a<tool>b"
    assert tokenizer.decode(ids, skip_special_tokens=False) == "a<s><tool>b"


@pytest.mark.parametrize(
    ("pre", "flag", "begins"),
    [
        ("llama-bpe", None, True),
        ("llama-bpe", False, False),
        ("qwen2", None, False),
        ("qwen2", True, True),
    ],
)
def test_begin_token_comes_first_where_model_or_file_says_so(
    pre: str, flag: bool | None, begins: bool
) -> None:
    more = {"bos_token_id": 256} | ({} if flag is None else {"add_bos_token": flag})
    file = byte_level(pre, [], **more)
    assert tokens(file, "a", add_special_tokens=True) == (["<s>", "a"] if begins else ["a"])
    assert tokens(file, "a") == ["a"]


def test_word_that_is_a_token_needs_no_merges_where_the_model_ignores_them() -> None:
    merges = ["b c", "a bc"]
    # "ab" is a token that no merge makes.
    for pre, expected in [("llama-bpe", ["ab"]), ("qwen2", ["a", "b"])]:
        file = byte_level(pre, merges)
        file.metadata["tokenizer.ggml.tokens"].append("ab")
        file.metadata["tokenizer.ggml.token_type"].append(NORMAL)
        assert tokens(file, "ab") == expected


def test_every_byte_survives_a_round_trip() -> None:
    tokenizer = build_tokenizer(byte_level("smollm", ["Ġ Ġ"]))
    text = "naïve ☃\t\r\n  42 \x00 你好 😀"
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def sentence_piece(**more: Any) -> GgufFile:
    pieces = {"▁": -6, "a": -7, "b": -8, "c": -9, "ab": -2, "bc": -1, "▁a": -5, "▁abc": -4}
    pieces |= {"abc": -3}
    byte_pieces = [f"<0x{byte:02X}>" for byte in range(256)]
    tokens = ["<unk>", "<s>", "</s>", *byte_pieces, *pieces]
    types = [TokenType.UNKNOWN, CONTROL, CONTROL, *[TokenType.BYTE] * 256, *[NORMAL] * len(pieces)]
    scores = [0.0] * 259 + [float(score) for score in pieces.values()]
    return gguf_file(model="llama", tokens=tokens, token_type=types, scores=scores, **more)


def test_sentence_piece_merges_the_pair_of_the_highest_score_first() -> None:
    # "bc" scores higher than "ab" and "▁a": the b goes to the c, then a and bc, then all of it.
    assert tokens(sentence_piece(), "abc") == ["▁abc"]
    assert tokens(sentence_piece(), "abab") == ["▁", "ab", "ab"]


def test_sentence_piece_puts_a_space_first_unless_the_file_says_otherwise() -> None:
    assert tokens(sentence_piece(), "a a") == ["▁a", "▁a"]
    assert tokens(sentence_piece(add_space_prefix=False), "a a") == ["a", "▁a"]
    for file in (sentence_piece(), sentence_piece(add_space_prefix=False)):
        tokenizer = build_tokenizer(file)
        assert tokenizer.decode(tokenizer.encode("a a").ids) == "a a"


def test_sentence_piece_begins_with_the_begin_token_and_spells_the_unknown_in_bytes() -> None:
    tokenizer = build_tokenizer(sentence_piece())
    encoded = tokenizer.encode("é\n")
    assert encoded.tokens == ["<s>", "▁", "<0xC3>", "<0xA9>", "<0x0A>"]
    assert tokenizer.decode(encoded.ids) == "é\n"


def test_tokenizer_config_names_template_and_special_tokens() -> None:
    file = sentence_piece(eos_token_id=2)
    file.metadata["tokenizer.chat_template"] = "{{ messages }}"
    file.metadata["llama.context_length"] = 64
    assert tokenizer_config(file) == {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "chat_template": "{{ messages }}",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "model_max_length": 64,
        "clean_up_tokenization_spaces": False,
    }


def test_special_token_outside_the_vocabulary_is_refused() -> None:
    with pytest.raises(InvalidModel, match="bos token 999"):
        tokenizer_config(byte_level("gpt-2", [], bos_token_id=999))
