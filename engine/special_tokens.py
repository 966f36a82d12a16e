"""Keeps text of a conversation from being taken for the marks of turns around it.

A chat template writes special tokens such as `<|im_end|>` as text, and the tokenizer finds them
there, wherever they stand: a client that sends them in a message could end its turn and speak for
the system. So messages are guarded before they are rendered: where one spells a special token, a
sign goes in between, at which the rendered text is cut before it becomes tokens. The parts spell
nothing special, and together they are the text as it was; tokenizers that put a space before every
text put one before each part.
"""

import re
from collections.abc import Iterable
from typing import Final

# Noncharacters: Unicode keeps them for use inside a program. If a message has one, it is escaped.
_MARK: Final = "\ufdd0"
_ITSELF: Final = "\ufdd0\ufdd1"
_CUT: Final = "\ufdd0\ufdd2"


class SpecialTokens:
    """The special tokens of one tokenizer."""

    def __init__(self, texts: Iterable[str]) -> None:
        """Take their texts; those of one character cannot be guarded against."""
        known = sorted((text for text in texts if len(text) > 1), key=len, reverse=True)
        self._guarded = {text: _cut(text, known) for text in known}
        self._pattern = re.compile("|".join(map(re.escape, [*known, _MARK])))

    def guard(self, text: str) -> str:
        """Return a text whose parts, as `parts` finds them after rendering, hold no special one."""
        return self._pattern.sub(lambda found: self._guarded.get(found[0], _ITSELF), text)

    def parts(self, rendered: str) -> list[str]:
        """Cut a text that holds guarded ones; each part is to become tokens by itself."""
        if _MARK not in rendered:
            return [rendered]
        return [part.replace(_ITSELF, _MARK) for part in rendered.split(_CUT)]


def _cut(text: str, known: list[str]) -> str:
    """A cut is put where neither side spells a shorter special token."""
    for place in range(1, len(text)):
        sides = text[:place], text[place:]
        if not any(other in side for other in known for side in sides):
            return _CUT.join(sides)
    return _CUT.join(text)
