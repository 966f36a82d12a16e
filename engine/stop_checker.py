"""Finds stop strings in text that comes in pieces, and holds back what may become one.

Where the pieces are cut makes no difference. The match that is complete first wins; of those
complete at the same character, the one listed first.
"""


class StopChecker:
    """The stop strings of one text.

    Each string is followed by a Knuth-Morris-Pratt automaton, so a character costs constant time
    per string however the strings repeat themselves, and what may become a stop string is known
    at every point: the longest of the partial matches.
    """

    def __init__(self, stop: tuple[str, ...], *, include_stop: bool) -> None:
        self._stop = stop
        self._include_stop = include_stop
        self._fallbacks = [_fallbacks(string) for string in stop]
        self._first_chars = frozenset(string[0] for string in stop)
        self._num_matched = [0] * len(stop)
        self._held = ""
        self.found: str | None = None
        """The stop string that ended the text."""

    def append(self, text: str, *, may_stop: bool = True) -> str:
        """Return what is safe to show of the text so far and was not shown before.

        With `may_stop` off a stop string that becomes complete does not count. After one is found
        nothing comes out any more.
        """
        if self.found is not None:
            return ""
        if not self._held and self._first_chars.isdisjoint(text):
            return text
        seen = self._held + text
        for end, char in enumerate(text, start=len(self._held) + 1):
            match = self._advance(char)
            if match is not None and may_stop:
                self.found = match
                self._held = ""
                return seen[: end if self._include_stop else end - len(match)]
        num_safe = len(seen) - max(self._num_matched)
        self._held = seen[num_safe:]
        return seen[:num_safe]

    def finish(self) -> str:
        """Return what was held back: no more text will come."""
        held, self._held = self._held, ""
        return held

    def _advance(self, char: str) -> str | None:
        """Follow one character; return the string that it completes."""
        complete = None
        for i, string in enumerate(self._stop):
            num_matched = self._num_matched[i]
            while num_matched and string[num_matched] != char:
                num_matched = self._fallbacks[i][num_matched - 1]
            if string[num_matched] == char:
                num_matched += 1
            if num_matched == len(string):
                complete = complete or string
                num_matched = self._fallbacks[i][num_matched - 1]
            self._num_matched[i] = num_matched
        return complete


def _fallbacks(string: str) -> list[int]:
    """For each prefix, the length of its longest proper suffix that is a prefix as well."""
    lengths = [0] * len(string)
    length = 0
    for i in range(1, len(string)):
        while length and string[i] != string[length]:
            length = lengths[length - 1]
        if string[i] == string[length]:
            length += 1
        lengths[i] = length
    return lengths
