"""`pageray pull`: fetches a model into the cache and shows how far it is."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
)

from engine.hub_digest import check_digests
from engine.model_store import resolve_model
from engine.progress import Report

NOTHING: Final = "the hub has no digests of this model: nothing was checked"


def pull(
    model: str,
    cache_dir: Path,
    console: Console,
    *,
    needs_weights: bool = True,
    checks_digests: bool = False,
) -> Path:
    """Return the folder of the model, after fetching what is missing.

    Raises ModelNotFound or InvalidModel.
    """
    with progress_bars(console) as report:
        folder = resolve_model(
            model, cache_dir=cache_dir, report=report, needs_weights=needs_weights
        )
        num_checked = check_digests(folder, report) if checks_digests else 0
    if checks_digests:
        # Local and converted models, and the embedded one, have no digests at the hub.
        console.print(f"{num_checked} files are what the hub has" if num_checked else NOTHING)
    return folder


@contextmanager
def progress_bars(console: Console) -> Iterator[Report]:
    """Give what shows the progress of each phase, and nothing while there is none."""
    columns = (
        TextColumn("  {task.description}"),
        BarColumn(bar_width=20),
        TaskProgressColumn(),
        TimeElapsedColumn(),
    )
    progress = Progress(*columns, console=console)
    tasks: dict[str, TaskID] = {}

    def report(phase: str, done: int, total: int) -> None:
        progress.start()  # only now: a model that is there needs no bar; later calls do nothing
        if phase not in tasks:
            tasks[phase] = progress.add_task(phase, total=None)
        # A phase of unknown length gets a moving bar.
        progress.update(tasks[phase], completed=done, total=total or None)

    try:
        yield report
    finally:
        if tasks:
            progress.stop()
