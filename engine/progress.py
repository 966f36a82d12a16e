"""How long work tells how far it is."""

from collections.abc import Callable

Report = Callable[[str, int, int], None]
"""Called with phase, done, total; a total of 0 is not known yet. May come from any thread."""
