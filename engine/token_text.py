"""Gives the text of tokens one by one, whole characters at a time.

Put together, the pieces are what `decode` gives for all tokens at once. A character whose bytes
are spread over tokens comes with the last of them; bytes that are no UTF-8 come as U+FFFD as soon
as no further byte can mend them.

One exception: where a tokenizer has tokens for single bytes (`<0xE2>`), `decode` gives up a whole
run of them for one bad byte; here only the bad part is lost.
"""

import codecs
import re
from typing import Protocol

from engine.byte_alphabet import bytes_of
from engine.tokenizer import Tokenizer

_REPLACEMENT = "\ufffd"
_BYTE_TOKEN = re.compile("<0x([0-9A-Fa-f]{2})>")
# What comes before a token decides about its leading space. One token would do, had all a text.
_NUM_CONTEXT_TOKENS = 4


class TokenText(Protocol):
    """Text of one sequence of tokens."""

    def append(self, token_id: int) -> str:
        """Return the text that the token makes certain."""

    def finish(self) -> str:
        """Return what stands for a character left unfinished."""


def start_token_text(
    tokenizer: Tokenizer, prompt_token_ids: list[int], skip_special_tokens: bool
) -> TokenText:
    """Make what fits the tokenizer, judged by what its decoder does rather than by its name."""
    decoder = tokenizer.backend.decoder
    if decoder is not None and decoder.decode(["a", "Ġ", "Ã", "©"]) == "a é":
        return _ByteLevelText(tokenizer, skip_special_tokens)
    has_byte_tokens = decoder is not None and decoder.decode(["a", "<0xC3>", "<0xA9>"]) == "aé"
    return _ContextText(tokenizer, prompt_token_ids, skip_special_tokens, has_byte_tokens)


class _ByteLevelText:
    """For tokenizers whose every token is a string of bytes (GPT-2, Llama 3, Qwen, SmolLM2)."""

    def __init__(self, tokenizer: Tokenizer, skip_special_tokens: bool) -> None:
        self._tokenizer = tokenizer
        self._skip_special_tokens = skip_special_tokens
        self._utf8 = _Utf8()

    def append(self, token_id: int) -> str:
        piece = self._tokenizer.decode([token_id], self._skip_special_tokens)
        # No text: a special token, which may even stand between two bytes of a character.
        if not piece or not (self._utf8.is_inside_character or _REPLACEMENT in piece):
            return piece
        return self._utf8.append(_token_bytes(self._tokenizer.backend.id_to_token(token_id) or ""))

    def finish(self) -> str:
        return self._utf8.finish()


class _ContextText:
    """For tokenizers whose tokens are text (SentencePiece, WordPiece), or single bytes of it.

    The text of a token depends on whether one stands before it, so a few are kept to decode it
    after; the prompt's last tokens come before the first.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt_token_ids: list[int],
        skip_special_tokens: bool,
        has_byte_tokens: bool,
    ) -> None:
        self._tokenizer = tokenizer
        self._skip_special_tokens = skip_special_tokens
        self._has_byte_tokens = has_byte_tokens
        self._context = prompt_token_ids[-_NUM_CONTEXT_TOKENS:]
        self._utf8 = _Utf8()

    def append(self, token_id: int) -> str:
        byte = self._byte_of(token_id)
        before, context = self._context, [*self._context, token_id]
        self._context = context[-_NUM_CONTEXT_TOKENS:]
        if byte is not None:
            return self._utf8.append(byte)
        text = self._decode(context)[len(self._decode(before)) :]
        # Without text it is a special token, which does not end a run of bytes.
        return self.finish() + text if text else ""

    def finish(self) -> str:
        return self._utf8.finish()

    def _decode(self, token_ids: list[int]) -> str:
        return self._tokenizer.decode(token_ids, self._skip_special_tokens)

    def _byte_of(self, token_id: int) -> bytes | None:
        if not self._has_byte_tokens:
            return None
        match = _BYTE_TOKEN.fullmatch(self._tokenizer.backend.id_to_token(token_id) or "")
        return bytes.fromhex(match[1]) if match else None


class _Utf8:
    """Characters of bytes that come one after the other."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.is_inside_character = False

    def append(self, data: bytes) -> str:
        text = self._decoder.decode(data)
        unfinished, _ = self._decoder.getstate()
        if len(unfinished) == 2 and b"\xed\xa0" <= unfinished <= b"\xed\xbf":
            # Half of a surrogate: Python waits for the rest, though nothing can come of it.
            text += self.finish()
            unfinished = b""
        self.is_inside_character = bool(unfinished)
        return text

    def finish(self) -> str:
        self.is_inside_character = False
        return self._decoder.decode(b"", final=True)


def _token_bytes(token: str) -> bytes:
    data = bytes_of(token)
    return token.encode() if data is None else data  # an added token is written as it is
