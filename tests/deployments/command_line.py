"""The command line as tests run it, with everything behind it replaced."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from deployments.args import AppArgs, ModelArgs
from deployments.launch_options import LaunchOptions

Run = Callable[..., tuple[int, str, str]]


class Launches:
    """Stands for `deployments.launch` and `deployments.cli_pull`; keeps what they were told."""

    def __init__(self) -> None:
        self.args: AppArgs | None = None
        self.options: LaunchOptions | None = None
        self.environment: dict[str, str] = {}
        self.pulled: list[tuple[str, Path]] = []
        self.error: BaseException | None = None
        self.url = ""
        """Of the service that stands for the one that a batch starts."""

    def model(self) -> ModelArgs:
        """The only model of the application that was launched."""
        assert self.args is not None
        [model] = self.args.models
        return model

    def serve_until_interrupted(self, args: AppArgs, options: LaunchOptions, _: object) -> None:
        self.args, self.options, self.environment = args, options, dict(os.environ)
        if self.error is not None:
            raise self.error

    @contextmanager
    def serving(
        self, args: AppArgs, options: LaunchOptions, console: object, *, drains: bool
    ) -> Iterator[str]:
        self.serve_until_interrupted(args, options, console)
        yield self.url

    def pull(self, model: str, cache_dir: Path, _console: object, **_: object) -> Path:
        self.pulled.append((model, cache_dir))
        return cache_dir / model
