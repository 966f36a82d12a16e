"""Stop strings: against searching the whole text, however it is cut."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.stop_checker import StopChecker
from tests.engine.stop_oracle import find_stop, num_held

# Few letters, so that strings overlap themselves and each other.
ABC = st.text("abc", max_size=30)
STOPS = st.lists(st.text("abc", min_size=1, max_size=6), max_size=4).map(tuple)
CUTS = st.lists(st.integers(0, 30), max_size=8)


def cut(text: str, cuts: list[int]) -> list[str]:
    borders = [0, *sorted(min(c, len(text)) for c in cuts), len(text)]
    return [text[a:b] for a, b in pairwise(borders)]


@given(ABC, STOPS, CUTS, st.booleans())
def test_text_ends_at_the_first_stop_and_nothing_is_held_in_vain(
    text: str, stop: tuple[str, ...], cuts: list[int], include_stop: bool
) -> None:
    checker = StopChecker(stop, include_stop=include_stop)
    shown = seen = ""
    for piece in cut(text, cuts):
        seen += piece
        shown += checker.append(piece)
        match = find_stop(seen, stop)
        if match is not None:
            end, string = match
            assert checker.found == string
            assert shown == seen[: end if include_stop else end - len(string)]
            assert checker.append("abcabc") == checker.finish() == ""
            break
        assert checker.found is None
        assert shown == seen[: len(seen) - num_held(seen, stop)]
    else:
        assert shown + checker.finish() == text


@pytest.mark.parametrize(
    ("text", "stop", "found", "shown"),
    [
        ("xabcd", ("abcd", "bc"), "bc", "xa"),  # complete first
        ("xabcd", ("bcd", "abcd"), "bcd", "xa"),  # complete together: listed first
        ("xabcd", ("abcd", "bcd"), "abcd", "x"),
        ("aab", ("ab",), "ab", "a"),  # a false start inside the match
        ("nothing", ("hing!",), None, "nothing"),
        ("e\u0301nd\u0301", ("d\u0301",), "d\u0301", "e\u0301n"),
        ("👨‍👩‍👧 END", (" END",), " END", "👨‍👩‍👧"),
    ],
)
def test_examples(text: str, stop: tuple[str, ...], found: str | None, shown: str) -> None:
    for size in range(1, len(text) + 1):
        checker = StopChecker(stop, include_stop=False)
        pieces = [checker.append(text[i : i + size]) for i in range(0, len(text), size)]
        assert "".join(pieces) + checker.finish() == shown
        assert checker.found == found


def test_stop_string_that_may_not_count_yet_stays_in_the_text() -> None:
    checker = StopChecker(("ab",), include_stop=False)
    assert checker.append("ab a", may_stop=False) == "ab "
    assert checker.append("b", may_stop=True) == ""
    assert checker.found == "ab"


def test_strings_that_repeat_themselves_cost_constant_time_for_each_character() -> None:
    class CountingStr(str):
        num_comparisons = 0

        def __getitem__(self, index: object) -> str:
            type(self).num_comparisons += 1
            return super().__getitem__(index)  # type: ignore[index]

        __hash__ = str.__hash__

    stop = tuple(CountingStr("a" * 1000 + end) for end in "bcdefghijklmnopq")
    checker = StopChecker(stop, include_stop=False)
    CountingStr.num_comparisons = 0
    text = ("a" * 1001 + "x") * 3
    shown = "".join(checker.append(char) for char in text)
    assert shown + checker.finish() == text
    # A step forward and, in all, as many steps back, for each of the 16 strings.
    assert CountingStr.num_comparisons <= 3 * len(text) * len(stop)
