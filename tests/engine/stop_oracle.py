"""Stop strings, found by searching the whole text."""


def find_stop(text: str, stop: tuple[str, ...]) -> tuple[int, str] | None:
    """Where the first match to be complete ends, and which it is."""
    ends = [(text.index(s) + len(s), i) for i, s in enumerate(stop) if s in text]
    if not ends:
        return None
    end, i = min(ends)
    return end, stop[i]


def num_held(text: str, stop: tuple[str, ...]) -> int:
    """Length of the longest end of the text that may become a stop string."""
    return max(
        (n for s in stop for n in range(1, len(s)) if text.endswith(s[:n])),
        default=0,
    )
