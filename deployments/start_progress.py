"""Says what a start waits for, when it takes long."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

from ray import serve
from ray.exceptions import RayError
from rich.console import Console

LOOK_S: Final = 2.0


@contextmanager
def told_what_it_waits_for(app_name: str, console: Console) -> Iterator[None]:
    """Print what Serve finds worth a word meanwhile, once: resources that are not there, mostly."""
    is_over = threading.Event()
    watch = threading.Thread(target=_watch, args=(app_name, console, is_over), daemon=True)
    watch.start()
    try:
        yield
    finally:
        is_over.set()
        watch.join()


def _watch(app_name: str, console: Console, is_over: threading.Event) -> None:
    told: set[str] = set()
    while not is_over.wait(LOOK_S):
        with suppress(RayError, RuntimeError):  # Serve is on its way up, or down
            application = serve.status().applications.get(app_name)
            deployments = {} if application is None else application.deployments
            # A number of seconds or replicas that changes is no news.
            for name, status in deployments.items():
                if status.message and name not in told:
                    told.add(name)
                    console.print(
                        f"  {status.message}", highlight=False, markup=False, soft_wrap=True
                    )
