"""`pageray batch`: its options, and what surrounds a run."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from deployments.batch import run_batch
from deployments.batch_input import read_batch, read_custom_ids
from deployments.batch_output import BatchAnswer, BatchOutput
from deployments.batch_progress import BatchProgress, BatchTally
from deployments.cli_client import get_json, open_client
from deployments.cli_engine_options import option
from deployments.cli_options import ServeOptions
from engine.errors import InvalidConfig

EXIT_FAILED_LINES = 1
EXIT_INTERRUPTED = 130
FOR_CLIENTS = ("api_key", "admin_key", "address", "config")
"""Options of `serve` that are no reason to refuse --url: a key, or set by the environment."""

OwnService = Callable[[], AbstractContextManager[str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchOptions(ServeOptions):
    """Those of `pageray serve`, for a service of its own, and the batch."""

    input: Annotated[
        Path, typer.Argument(metavar="INPUT", help="Requests: OpenAI's batch format, JSON lines.")
    ]
    output: Annotated[
        Path,
        typer.Argument(
            metavar="OUTPUT", help="Answers are appended; what is answered in it is not asked."
        ),
    ]
    url: Annotated[
        str | None,
        option(
            "Batch",
            "--url",
            help="Ask the service that listens there.",
            show_default="start one, with the options of `serve`",
        ),
    ] = None
    concurrency: Annotated[
        int,
        option(
            "Batch", "--concurrency", "-c", min=1, metavar="N", help="Requests under way at once."
        ),
    ] = 256


def batch(options: BatchOptions, own_service: OwnService) -> int:
    """Run the batch and return the exit code; `own_service` starts one and yields its URL.

    Raises PageRayError for files that are no batch, before anything starts, and when the service
    does not answer.
    """
    _check(options)
    console = Console()
    custom_ids = read_custom_ids(options.input)
    try:
        with BatchOutput(options.output, custom_ids) as output:
            num_left = len(custom_ids) - len(output.answered)
            if num_left:
                _run(options, own_service, output, len(custom_ids), console)
            failed = f", {output.num_failed} of them with an error" if output.num_failed else ""
            console.print(
                f"{len(output.answered)} of {len(custom_ids)} answered in {output.path}{failed}.",
                highlight=False,
                markup=False,
                soft_wrap=True,
            )
            return EXIT_FAILED_LINES if output.num_failed else 0
    except KeyboardInterrupt:
        console.print("Stopped. Run it again with the same files, and it goes on from here.")
        return EXIT_INTERRUPTED


def _run(
    options: BatchOptions,
    own_service: OwnService,
    output: BatchOutput,
    num_total: int,
    console: Console,
) -> None:
    api_key = options.api_key[0] if options.api_key else None
    service = own_service() if options.url is None else nullcontext(options.url)
    trust_env = options.url is not None
    with service as url:
        with open_client(url, api_key, trust_env=trust_env) as client:
            # What is wrong with URL or key is told at once, and how to put it right.
            get_json(client, "/v1/models")
            base_url = str(client.base_url)
        tally = BatchTally()
        progress = BatchProgress(tally, console, len(output.answered), num_total)

        def on_answer(answer: BatchAnswer) -> None:
            tally.count(answer)
            progress.update()

        with progress.shown():
            run_batch(
                read_batch(options.input),
                output,
                on_answer,
                url=base_url,
                api_key=api_key,
                concurrency=min(options.concurrency, num_total - len(output.answered)),
                trust_env=trust_env,
            )
        console.print(str(tally), highlight=False)


def _check(options: BatchOptions) -> None:
    both = options.input, options.output
    if all(path.exists() for path in both) and options.output.samefile(options.input):
        raise InvalidConfig(
            f"{options.input} is both input and output.", "Name another file for the answers."
        )
    if options.api_keys_file is not None and not options.api_key:
        raise InvalidConfig(
            "The service asks for a key, and the batch has none.",
            "Give it one of its own with --api-key.",
        )
    if options.url is None:
        return
    given = [
        f"--{field.name.replace('_', '-')}"
        for field in fields(ServeOptions)
        if field.name not in FOR_CLIENTS and getattr(options, field.name) != field.default
    ]
    if given or options.config is not None:
        raise InvalidConfig(
            f"{', '.join(given) or '--config'} is for a service that is started here, and --url "
            "names one that runs.",
            "Give one or the other.",
        )
    if options.api_key and len(options.api_key) > 1:
        raise InvalidConfig("Several keys are given.", "Give the one that the service knows.")
