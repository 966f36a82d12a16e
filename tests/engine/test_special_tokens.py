"""Text that spells a special token stays text, and stays as it is."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.special_tokens import SpecialTokens

KNOWN = ["<|im_start|>", "<|im_end|>", "<s>", "</s>", "<<s>", "|im_end|>", "a"]
SPECIAL = SpecialTokens(KNOWN)
pieces = st.sampled_from([*KNOWN, "<", "|", ">", "im_end", "\ufdd0", "\ufdd1", "\ufdd2", "x"])
texts = st.lists(pieces, max_size=8).map("".join)


@given(texts, texts)
def test_the_parts_spell_nothing_special_and_make_the_text(first: str, second: str) -> None:
    parts = SPECIAL.parts(SPECIAL.guard(first))
    assert "".join(parts) == first
    special = [text for text in KNOWN if len(text) > 1]
    assert not [text for part in parts for text in special if text in part]
    # What the template writes between two messages stays whole.
    rendered = f"<s>{SPECIAL.guard(first)}<|im_end|>{SPECIAL.guard(second)}</s>"
    assert "".join(SPECIAL.parts(rendered)) == f"<s>{first}<|im_end|>{second}</s>"


@pytest.mark.parametrize("text", ["", "Hello <b>", "im_end", "日本語"])
def test_other_text_is_left_alone(text: str) -> None:
    assert SPECIAL.guard(text) == text
    assert SPECIAL.parts(text) == [text]


def test_a_tokenizer_without_special_tokens_guards_nothing() -> None:
    assert SpecialTokens([]).parts(SpecialTokens([]).guard("<s>")) == ["<s>"]
