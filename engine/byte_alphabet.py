"""The characters that stand for bytes in byte-level vocabularies.

As in GPT-2: bytes that print as Latin-1 stand for themselves, the others, in order, are the
characters from U+0100 on.
"""

from itertools import chain


def _byte_of_char() -> dict[str, int]:
    printable = set(chain(range(0x21, 0x7F), range(0xA1, 0xAD), range(0xAE, 0x100)))
    others = (byte for byte in range(256) if byte not in printable)
    alphabet = {chr(byte): byte for byte in printable}
    return alphabet | {chr(0x100 + i): byte for i, byte in enumerate(others)}


_BYTE_OF_CHAR = _byte_of_char()


def bytes_of(token: str) -> bytes | None:
    """The bytes that a token of such a vocabulary stands for; None if it is not one."""
    if all(char in _BYTE_OF_CHAR for char in token):
        return bytes(_BYTE_OF_CHAR[char] for char in token)
    return None
