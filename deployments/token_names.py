"""The text and the bytes of single tokens, for log probabilities.

A token may hold a part of a character only: then its bytes tell what its text cannot.
"""

import re
from typing import Final

from engine.byte_alphabet import bytes_of
from engine.tokenizer import Tokenizer

_BYTE_PIECE: Final = re.compile(r"<0x([0-9A-F]{2})>")
_WORD_START: Final = "\N{LOWER ONE EIGHTH BLOCK}"  # SentencePiece's mark of a leading space
_REPLACEMENT: Final = "\N{REPLACEMENT CHARACTER}"


_LOWEST_LOGPROB: Final = -9999.0


def finite_logprob(logprob: float) -> float:
    """JSON has no infinity: a token that could not be drawn gets a very low number."""
    return max(logprob, _LOWEST_LOGPROB)


class TokenNames:
    """Texts of token ids, each worked out once."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._known: dict[int, tuple[str, list[int] | None]] = {}

    def text(self, token_id: int) -> str:
        """The token as text; half a character shows as a replacement character."""
        return self._look_up(token_id)[0]

    def utf8(self, token_id: int) -> list[int] | None:
        """The token as bytes; None when they are not known."""
        return self._look_up(token_id)[1]

    def _look_up(self, token_id: int) -> tuple[str, list[int] | None]:
        known = self._known.get(token_id)
        if known is None:
            known = self._known[token_id] = self._work_out(token_id)
        return known

    def _work_out(self, token_id: int) -> tuple[str, list[int] | None]:
        text = self._tokenizer.decode([token_id], skip_special_tokens=False)
        piece = self._tokenizer.backend.id_to_token(token_id) or ""
        if piece.startswith(_WORD_START) and not text.startswith(" "):
            text = " " + text  # the decoder strips the space at the start of a text
        if _REPLACEMENT not in text:
            return text, list(text.encode())
        match = _BYTE_PIECE.fullmatch(piece)
        if match is not None:
            return text, [int(match[1], 16)]
        data = bytes_of(piece) if piece else None
        return text, None if data is None else list(data)
