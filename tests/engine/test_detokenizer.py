"""Detokenizer: the pieces against decoding everything at once, with and without stop strings."""

from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from engine.detokenizer import Detokenizer
from engine.sampling_params import SamplingParams
from engine.tokenizer import Tokenizer
from tests.engine.stop_oracle import find_stop, num_held
from tests.engine.toy_tokenizers import ADDED, SPECIAL, byte_level, sentence_piece, word_piece

BYTE_LEVEL = byte_level()
SENTENCE_PIECE = sentence_piece()

# Characters of one to four bytes, joined and combined ones, right to left, spaces in runs.
ALPHABET = "ab theé語你안😀\u200d👩👧\u0301مر\n\t 1.\ufffd\U0001f1eb\u0e33"
TEXTS = st.text(ALPHABET, max_size=40) | st.text(max_size=20)
# All that a character can begin with: the last byte goes through 0x40 values.
UNFINISHED = {
    chr(code).encode()[:num_bytes]
    for code in range(0x80, 0x110000, 0x40)
    if not 0xD800 <= code <= 0xDFFF
    for num_bytes in range(1, len(chr(code).encode()))
}
SPLITS = st.lists(st.integers(1, 5), max_size=40)


def split(token_ids: list[int], sizes: list[int]) -> list[list[int]]:
    chunks, start = [], 0
    for size in [*sizes, len(token_ids)]:
        chunks.append(token_ids[start : start + size])
        start += size
    return chunks


def detokenizer(
    tokenizer: Tokenizer, prompt: list[int] | None = None, **params: object
) -> Detokenizer:
    return Detokenizer(tokenizer, prompt or [], SamplingParams(**params))  # type: ignore[arg-type]


def pieces_of(detokenizer: Detokenizer, chunks: list[list[int]]) -> list[str]:
    return [*map(detokenizer.append, chunks), detokenizer.finish()]


def certain_text(data: bytes) -> str:
    """The text of the bytes without a character that is still unfinished at the end."""
    for num_bytes in (3, 2, 1):
        if data[-num_bytes:] in UNFINISHED:
            data = data[:-num_bytes]
            break
    return data.decode(errors="replace")


@given(TEXTS, SPLITS)
def test_text_comes_back_in_whole_characters(text: str, sizes: list[int]) -> None:
    token_ids = BYTE_LEVEL.encode(text)
    detok = detokenizer(BYTE_LEVEL)
    shown = ""
    for chunk in split(token_ids, sizes):
        piece = detok.append(chunk)
        assert piece.count("\ufffd") <= text.count("\ufffd")
        shown += piece
        assert text.startswith(shown)
    assert shown == text
    assert detok.finish() == ""
    assert detok.num_tokens_used == len(token_ids)


@given(st.lists(st.integers(0, BYTE_LEVEL.vocab_size + 3), max_size=30), SPLITS, st.booleans())
def test_any_tokens_give_what_decode_gives(
    token_ids: list[int], sizes: list[int], skip_special_tokens: bool
) -> None:
    detok = detokenizer(BYTE_LEVEL, skip_special_tokens=skip_special_tokens)
    pieces = pieces_of(detok, split(token_ids, sizes))
    assert "".join(pieces) == BYTE_LEVEL.decode(token_ids, skip_special_tokens)


@given(st.lists(st.sampled_from([0x61, *range(0x80, 0x100)]), max_size=12))
@example([0xED, 0xA0])
@example([0xED, 0xBF, 0xBF])
def test_bad_bytes_show_as_soon_as_nothing_can_mend_them(data: list[int]) -> None:
    detok = detokenizer(BYTE_LEVEL)
    shown, seen = "", b""
    for byte in data:
        seen += bytes([byte])
        shown += detok.append([byte_token(byte)])
        assert shown == certain_text(seen)
    assert shown + detok.finish() == seen.decode(errors="replace")


def byte_token(byte: int) -> int:
    """Token of one byte; its string is what the byte-level alphabet has for it."""
    encoded = BYTE_LEVEL.backend.get_vocab()
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    if byte in printable:
        return encoded[chr(byte)]
    others = [b for b in range(256) if b not in printable]
    return encoded[chr(0x100 + others.index(byte))]


def test_special_tokens_show_only_when_asked_for() -> None:
    token_ids = BYTE_LEVEL.encode(f"one{SPECIAL}two{ADDED}")
    assert "".join(pieces_of(detokenizer(BYTE_LEVEL), [token_ids])) == f"onetwo{ADDED}"
    shown = "".join(pieces_of(detokenizer(BYTE_LEVEL, skip_special_tokens=False), [token_ids]))
    assert shown == f"one{SPECIAL}two{ADDED}"


@given(st.text("the cat é語你\n", max_size=20), st.text("the cat é語😀\n", max_size=30), SPLITS)
def test_sentence_piece_text_goes_on_where_the_prompt_ends(
    prompt: str, text: str, sizes: list[int]
) -> None:
    token_ids = SENTENCE_PIECE.encode(prompt + text)
    num_prompt = len(SENTENCE_PIECE.encode(prompt))
    prompt_ids, output_ids = token_ids[:num_prompt], token_ids[num_prompt:]
    detok = detokenizer(SENTENCE_PIECE, prompt_ids)
    pieces = pieces_of(detok, split(output_ids, sizes))
    assert SENTENCE_PIECE.decode(prompt_ids) + "".join(pieces) == SENTENCE_PIECE.decode(token_ids)
    assert not any("\ufffd" in piece for piece in pieces)


def test_sentence_piece_keeps_the_space_before_the_first_word_of_the_output() -> None:
    prompt = SENTENCE_PIECE.encode("the cat")
    vocab = SENTENCE_PIECE.backend.get_vocab()
    output = [vocab["▁P"], vocab["aris"]]
    assert detokenizer(SENTENCE_PIECE, prompt).append(output) == " Paris"
    assert detokenizer(SENTENCE_PIECE, [vocab[SPECIAL]]).append(output) == "Paris"


def test_one_bad_byte_token_costs_only_itself() -> None:
    vocab = SENTENCE_PIECE.backend.get_vocab()
    token_ids = [vocab[f"<0x{byte:02X}>"] for byte in "你".encode() + b"\xff" + "好".encode()]
    pieces = pieces_of(detokenizer(SENTENCE_PIECE), [[token_id] for token_id in token_ids])
    assert pieces == ["", "", "你", "\ufffd", "", "", "好", ""]
    unfinished = [vocab["<0xE4>"], vocab["<0xBD>"], vocab["the"]]
    pieces = pieces_of(detokenizer(SENTENCE_PIECE), [[token_id] for token_id in unfinished])
    assert pieces == ["", "", "\ufffdthe", ""]


def test_word_pieces_get_their_spaces() -> None:
    tokenizer = word_piece()
    token_ids = tokenizer.encode("the cats sat the cat")
    pieces = pieces_of(detokenizer(tokenizer), [[token_id] for token_id in token_ids])
    assert pieces == ["the", " cat", "s", " sat", " the", " cat", ""]


@st.composite
def texts_and_stops(draw: st.DrawFn) -> tuple[str, tuple[str, ...]]:
    text = draw(TEXTS.filter(bool))
    stops = []
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(text) - 1))
        inside = text[start : start + draw(st.integers(1, 6))]
        stops.append(draw(st.sampled_from([inside, inside + "z", inside[::-1]])))
    return text, tuple(stops)


@given(texts_and_stops(), SPLITS, st.booleans())
@settings(max_examples=200)
def test_text_ends_at_the_token_that_completes_a_stop_string(
    text_and_stop: tuple[str, tuple[str, ...]], sizes: list[int], include_stop: bool
) -> None:
    text, stop = text_and_stop
    token_ids = BYTE_LEVEL.encode(text)
    detok = detokenizer(BYTE_LEVEL, stop=stop, include_stop=include_stop)
    plain = detokenizer(BYTE_LEVEL)
    shown = seen = ""
    for i, token_id in enumerate(token_ids):
        seen += plain.append([token_id])
        shown += detok.append([token_id])
        match = find_stop(seen, stop)
        if match is not None:
            end, string = match
            assert detok.stop_string == string
            assert detok.num_tokens_used == i + 1
            assert shown == text[: end if include_stop else end - len(string)]
            break
        assert shown == seen[: len(seen) - num_held(seen, stop)]
    else:
        shown += detok.finish()
        assert shown == text
        assert detok.stop_string is None
        assert detok.num_tokens_used == len(token_ids)
    chunked = detokenizer(BYTE_LEVEL, stop=stop, include_stop=include_stop)
    assert "".join(pieces_of(chunked, split(token_ids, sizes))) == shown
    assert chunked.num_tokens_used == detok.num_tokens_used


def test_stop_string_counts_from_min_tokens_on() -> None:
    token_ids = [BYTE_LEVEL.encode(char)[0] for char in "a.b.c."]
    detok = detokenizer(BYTE_LEVEL, stop=(".",), min_tokens=4)
    assert detok.append(token_ids) == "a.b"
    assert detok.num_tokens_used == 4


def test_smollm2_text_comes_back(smollm2_path: Path) -> None:
    tokenizer = Tokenizer.from_folder(smollm2_path)
    text = (
        "Café 12345  déjà\n\n\tvu 你好、世界 😀👨‍👩‍👧 مرحبا بالعالم e\u0301 def f(x):\n    return x"
    )
    token_ids = tokenizer.encode(text)
    pieces = pieces_of(detokenizer(tokenizer), [[token_id] for token_id in token_ids])
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)
    garbage = [(i * 7919) % tokenizer.vocab_size for i in range(3000)]
    pieces = pieces_of(detokenizer(tokenizer), [[token_id] for token_id in garbage])
    assert "".join(pieces) == tokenizer.decode(garbage)


@pytest.mark.parametrize("make", [byte_level, sentence_piece])
def test_no_tokens_give_no_text(make: object) -> None:
    detok = detokenizer(make())  # type: ignore[operator]
    assert detok.append([]) == ""
    assert detok.finish() == ""
    assert detok.num_tokens_used == 0
