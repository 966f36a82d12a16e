"""What a batch tells while it runs: a bar on a terminal, a line now and then in a log."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from deployments.batch_output import BatchAnswer

LINE_PERIOD_S: Final = 60.0


class BatchTally:
    """What this run has got so far."""

    def __init__(self) -> None:
        self.started_s = time.monotonic()
        self.num_answers = 0
        self.num_prompt_tokens = 0
        self.num_output_tokens = 0

    def count(self, answer: BatchAnswer) -> None:
        """Add an answer."""
        self.num_answers += 1
        usage = answer.body.get("usage") if isinstance(answer.body, dict) else None
        if isinstance(usage, dict):
            self.num_prompt_tokens += _number(usage.get("prompt_tokens"))
            self.num_output_tokens += _number(usage.get("completion_tokens"))

    def __str__(self) -> str:
        """Tokens and their rate."""
        elapsed_s = max(time.monotonic() - self.started_s, 1e-6)
        return (
            f"{self.num_prompt_tokens} prompt and {self.num_output_tokens} output tokens "
            f"in {elapsed_s:.0f} s, {self.num_output_tokens / elapsed_s:.1f} output tokens/s"
        )


class BatchProgress:
    """Shows a tally."""

    def __init__(self, tally: BatchTally, console: Console, num_done: int, num_total: int) -> None:
        """Begin with `num_done` requests that earlier runs have had answered."""
        self._tally = tally
        self._console = console
        self._num_done = num_done
        self._num_total = num_total
        self._last_line_s = time.monotonic()
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("batch", completed=num_done, total=num_total, rate="")

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Show it meanwhile."""
        with self._bar:
            yield

    def update(self) -> None:
        """Show what the tally says now."""
        tally, now_s = self._tally, time.monotonic()
        done = self._num_done + tally.num_answers
        rate = tally.num_output_tokens / max(now_s - tally.started_s, 1e-6)
        self._bar.update(self._task, completed=done, rate=f"{rate:.1f} tokens/s")
        if not self._console.is_terminal and now_s - self._last_line_s >= LINE_PERIOD_S:
            self._last_line_s = now_s
            self._console.print(
                f"{done} of {self._num_total} answered: {tally}", highlight=False, soft_wrap=True
            )


def _number(value: Any) -> int:
    return value if isinstance(value, int) else 0
