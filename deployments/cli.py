"""The command `pageray`. The only reader of argv and of the environment.

Imports neither Ray nor torch by itself: help, errors and the client commands come at once.
"""

import importlib.metadata
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from rich.console import Console

from deployments.args import AppArgs
from deployments.cli_batch import BatchOptions
from deployments.cli_batch import batch as run_batch
from deployments.cli_chat import chat as run_chat
from deployments.cli_client import open_client
from deployments.cli_node_env import node_environment
from deployments.cli_options import PlanOptions, ServeOptions, takes_options
from deployments.cli_ray_environment import ray_environment, socket_base
from deployments.cli_serve_config import serve_config
from deployments.cli_settings import (
    app_args,
    check_labels,
    launch_options,
    parse_size,
)
from deployments.cli_simulate import simulate
from deployments.cli_status import fetch_status, render_status, watch_status
from deployments.cli_why import fetch_why, render_why
from deployments.launch_options import LaunchOptions
from engine.errors import InvalidConfig, PageRayError

EXIT_FAILURE = 2

app = typer.Typer(
    name="pageray",
    help="Serves large language models from a Ray cluster.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # rich's tables cut long option names off
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
Served = TypeVar("Served", bound=ServeOptions)
PLAIN: Any = {"highlight": False, "markup": False, "soft_wrap": True}

Url = Annotated[str, typer.Option("--url", help="Where the service listens.")]
ApiKey = Annotated[
    str | None,
    typer.Option(
        "--api-key",
        envvar="PAGERAY_API_KEY",
        metavar="KEY",
        help="Key that the service asks for.",
        show_default=False,
    ),
]
DEFAULT_URL = "http://127.0.0.1:8000"


def main() -> None:
    """Run the command line; errors made on purpose end in two lines and no traceback."""
    try:
        app()
    except PageRayError as error:
        stderr = Console(stderr=True)
        stderr.print(f"Error: {error.cause}", style="red", **PLAIN)
        stderr.print(error.fix, **PLAIN)
        sys.exit(EXIT_FAILURE)


@app.callback(invoke_without_command=True)
def _top(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and leave.")
    ] = False,
) -> None:
    if version:
        typer.echo(f"pageray {importlib.metadata.version('pageray')}")
        raise typer.Exit


@app.command()
@takes_options(ServeOptions)
def serve(options: ServeOptions) -> None:
    """Serve a model over HTTP until Ctrl-C; without MODEL, SmolLM2-135M-Instruct."""
    start = launch_options(options)
    with _ready_for_ray(options, start) as args:
        from deployments.launch import serve_until_interrupted  # noqa: PLC0415  see there

        # Its file is fixed: at the end what Ray prints goes elsewhere.
        serve_until_interrupted(args, start, Console(file=sys.stdout))


@app.command()
@takes_options(BatchOptions)
def batch(options: BatchOptions) -> None:
    """Have a file of requests answered by a service, or by one started for it.

    Run again with the same files, it goes on where it stopped. Exit code 1: some answers are
    errors.
    """

    @contextmanager
    def own_service() -> Iterator[str]:
        start = launch_options(options)
        with _ready_for_ray(options, start) as args:
            from deployments.launch import serving  # noqa: PLC0415  see there

            # Who stops a batch does not wait for answers that nobody would write down.
            with serving(args, start, Console(), drains=False) as url:
                yield url

    raise typer.Exit(run_batch(options, own_service))


@app.command()
@takes_options(ServeOptions)
def config(options: ServeOptions) -> None:
    """Print the Serve config file for `serve deploy`; takes the options of `serve`."""
    start = launch_options(replace(options, address=options.address or "auto"))
    text = serve_config(app_args(options), start, with_cache_dir=options.cache_dir is not None)
    typer.echo(text, nl=False)


@app.command("node-env")
def node_env() -> None:
    """Print what every node of a cluster exports before `ray start`, with a token for all."""
    typer.echo(node_environment(os.environ.get("RAY_AUTH_TOKEN")), nl=False)


@app.command()
@takes_options(PlanOptions)
def plan(options: PlanOptions) -> None:
    """Predict how memory would be used; takes the options of `serve`, reads no weights."""
    args = app_args(_with_cache_dir(options))
    gpu_bytes = None
    if options.device_memory is not None:
        gpu_bytes = parse_size(options.device_memory, "device-memory")
    from deployments.cli_plan import plan as run_plan  # noqa: PLC0415  brings torch

    for model in args.models:
        run_plan(model, args.cache_dir, gpu_bytes, as_json=options.as_json)


@app.command()
def pull(
    model: Annotated[
        str, typer.Argument(help="Hub id, GGUF file, or smollm2 for the embedded default.")
    ],
    cache_dir: Annotated[
        Path | None,
        typer.Option(
            "--cache-dir",
            help="Where fetched models are kept.",
            show_default="$PAGERAY_CACHE or ~/.cache/pageray",
        ),
    ] = None,
    check: Annotated[
        bool,
        typer.Option("--check", help="Check every file of a hub model against the hub's digest."),
    ] = False,
) -> None:
    """Fetch a model; a second call comes back at once."""
    folder = _pull(model, cache_dir or default_cache_dir(os.environ), checks_digests=check)
    Console().print(f"{model} is at {folder}", **PLAIN)


@app.command()
def chat(
    url: Url = DEFAULT_URL,
    model: Annotated[
        str | None, typer.Option("--model", help="Model to ask.", show_default="the first one")
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option(
            "--temperature",
            metavar="T",
            help="0: the likeliest answer, which suits small models.",
            show_default="the service's",
        ),
    ] = None,
    api_key: ApiKey = None,
) -> None:
    """Talk to a served model in the terminal."""
    with open_client(url, api_key) as client:
        run_chat(client, model, Console(), temperature=temperature)


@app.command()
def status(
    url: Url = DEFAULT_URL,
    watch: Annotated[bool, typer.Option("--watch", help="Refresh until Ctrl-C.")] = False,
    why: Annotated[
        str | None,
        typer.Option("--why", metavar="ID", help="Show why this request went to its replica."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
    api_key: ApiKey = None,
) -> None:
    """Show the replicas and their KV blocks."""
    console = Console()
    with open_client(url, api_key) as client:
        if as_json:
            found = fetch_status(client) if why is None else fetch_why(client, why)
            console.print_json(data=found)
        elif why is not None:
            console.print(render_why(fetch_why(client, why)))
        elif watch:
            watch_status(client, console)
        else:
            console.print(render_status(fetch_status(client)))


app.command()(simulate)


def default_cache_dir(environment: Mapping[str, str]) -> Path:
    """Where fetched models are kept: $PAGERAY_CACHE, else in the user's cache folder."""
    if own := environment.get("PAGERAY_CACHE"):
        return Path(own).expanduser()
    base = environment.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "pageray"


@contextmanager
def _ready_for_ray(options: ServeOptions, start: LaunchOptions) -> Iterator[AppArgs]:
    """Check, fetch and set up what has to be before Ray starts."""
    _refuse_foreign_kernels()
    args = app_args(_with_cache_dir(options))
    check_labels(args, start)
    if start.address is None:
        for model in args.models:
            _pull(model.model, args.cache_dir, needs_weights=model.needs_weights)
    # Ray reads its environment when it is imported, so that comes only inside of this.
    with tempfile.TemporaryDirectory(prefix="pageray-", dir=socket_base()) as folder:
        for name, value in ray_environment(start, Path(folder)).items():
            os.environ.setdefault(name, value)
        yield args


def _with_cache_dir(options: Served) -> Served:
    return replace(options, cache_dir=options.cache_dir or default_cache_dir(os.environ))


def _pull(
    model: str, cache_dir: Path, *, needs_weights: bool = True, checks_digests: bool = False
) -> Path:
    from deployments.cli_pull import pull as run_pull  # noqa: PLC0415  slow to import

    return run_pull(
        model,
        cache_dir,
        Console(),
        needs_weights=needs_weights,
        checks_digests=checks_digests,
    )


def _refuse_foreign_kernels() -> None:
    try:
        version = importlib.metadata.version("kernels")
    except importlib.metadata.PackageNotFoundError:
        return
    raise InvalidConfig(
        f"The distribution kernels {version} is installed here; its package and "
        "PageRay's own have one name and hide each other.",
        "Remove it and put ours back: pip uninstall -y kernels && "
        "pip install --force-reinstall --no-deps pageray",
    )


if __name__ == "__main__":
    main()
