"""Starts the application on a Ray cluster, says what happens, and stops what it started."""

import io
import logging
import os
import signal
import socket
import textwrap
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout, suppress
from typing import Any

import httpx2
import ray
from ray import serve
from ray.exceptions import RayActorError, RayError
from ray.serve.config import HTTPOptions
from ray.serve.schema import LoggingConfig
from rich.console import Console

from cluster.engine_description import EngineDescription
from deployments.app import build, num_cpus_needed
from deployments.args import AppArgs, ModelArgs
from deployments.launch_options import LaunchOptions, LogFormat
from deployments.serve_peers import FRONTEND
from engine.errors import InvalidConfig

APP_NAME = "pageray"
SERVE_LOGGER = "ray.serve"
HTTP_TIMEOUT_S = 60.0
DRAIN_LOOK_S = 0.2
DRAIN_ANSWER_S = 5.0


def serve_until_interrupted(args: AppArgs, options: LaunchOptions, console: Console) -> None:
    """Serve until SIGINT or SIGTERM, then drain and stop everything that was started.

    Raises InvalidConfig with the root cause when the application does not come up.
    """
    started = time.monotonic()
    if options.address is None:
        _check_port(options)
    if not options.verbose:
        logging.getLogger(SERVE_LOGGER).setLevel(logging.ERROR)
    try:
        with _ray(args, options, console), _application(args, options, console):
            _greet(args, options, console, time.monotonic() - started)
            threading.Event().wait()
    except KeyboardInterrupt:
        console.print("Stopped everything that was started here.")


def _check_port(options: LaunchOptions) -> None:
    """Refuse a port that cannot be had; what HAProxy says of it comes late and in pages."""
    try:
        found = socket.getaddrinfo(options.host, options.port, type=socket.SOCK_STREAM)
        family, _, _, _, address = found[0]
        socket.create_server(address[:2], family=family).close()
    except OSError as error:
        reason = str(error.strerror).partition(" (")[0]
        raise InvalidConfig(
            f"Nobody can listen at {options.host}, port {options.port}: {reason}.",
            "Stop who listens there, or choose others with --port and --host.",
        ) from None


@contextmanager
def _without_words_of_ray(options: LaunchOptions) -> Iterator[None]:
    # It reports every call that was open when its actors ended, as if that were a failure.
    with nullcontext() if options.verbose else redirect_stdout(io.StringIO()):
        yield


@contextmanager
def _ray(args: AppArgs, options: LaunchOptions, console: Console) -> Iterator[None]:
    with _phase(console, "start Ray" if options.address is None else "join Ray"):
        if options.address is not None:
            ray.init(address=options.address, logging_level=logging.ERROR, log_to_driver=False)
        else:
            ray.init(
                # CPUs are only Ray's tokens for placing actors. On one machine everything must
                # start even where ranks and frontends share cores.
                num_cpus=max(os.cpu_count() or 1, num_cpus_needed(args)),
                include_dashboard=options.dashboard,
                logging_level=logging.ERROR,
                log_to_driver=options.verbose,
            )
    # Only now: Ray sets a handler of its own, which would leave HAProxy behind. SIGINT as well:
    # shells start background jobs with it ignored.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    try:
        yield
    finally:
        with _without_words_of_ray(options):
            ray.shutdown()


@contextmanager
def _application(args: AppArgs, options: LaunchOptions, console: Console) -> Iterator[None]:
    with _phase(console, "start Ray Serve"):
        serve.start(http_options=HTTPOptions(host=options.host, port=options.port))
    try:
        with _phase(console, "start engine and frontend"):
            _deploy(args, options.log_format)
        if options.address is None:  # a joined cluster may have no proxy on this machine
            with _phase(console, "open the port"):
                _wait_for_http(_url(options))
        yield
    finally:
        console.print("Draining: streams finish, new requests are refused. Ctrl-C cuts them off.")
        with _phase(console, "drain and stop"), _without_words_of_ray(options):
            if APP_NAME in serve.status().applications:
                _drain(args.drain_timeout_s)
                serve.delete(APP_NAME)
            serve.shutdown()


def _drain(timeout_s: float) -> None:
    """Let the frontends answer what they have; Serve alone would stop the replicas beside them."""
    deadline = time.monotonic() + timeout_s
    frontends = serve.get_deployment_handle(FRONTEND, APP_NAME)
    frontends._init(_run_router_in_separate_loop=True)  # the driver has no event loop of its own
    with suppress(RayError, RuntimeError):  # none is left to ask
        with suppress(KeyboardInterrupt):  # the second one cuts off
            while time.monotonic() < deadline and _close(frontends):
                time.sleep(DRAIN_LOOK_S)
        _close(frontends, turn_out=True)


def _close(frontends: Any, *, turn_out: bool = False) -> bool:
    """Let the frontends close; return whether anybody is still inside. Raises RayError."""
    try:
        # A handle knows of nobody before it has led a call to somebody.
        frontends.close.remote().result(timeout_s=DRAIN_ANSWER_S)
        answers = frontends.broadcast("close", turn_out=turn_out).results(
            timeout_s=DRAIN_ANSWER_S, return_exceptions=True
        )
    except TimeoutError:
        return True
    # One that does not answer may be busy with those who are inside; one that died is not.
    return any(answer != 0 and not isinstance(answer, RayActorError) for answer in answers)


def _deploy(args: AppArgs, log_format: LogFormat) -> None:
    logging_config = LoggingConfig.model_validate(log_format.settings())
    try:
        serve.run(build(args), name=APP_NAME, route_prefix="/", logging_config=logging_config)
    except RuntimeError as error:
        application = serve.status().applications.get(APP_NAME)
        reports = [str(error)]
        if application is not None:
            reports += [status.message for status in application.deployments.values()]
        raise InvalidConfig(_root_cause(reports), "See the lines above for the fix.") from error


def _wait_for_http(url: str) -> None:
    # HAProxy starts after the frontend: without this, whoever asks once told so finds nobody.
    deadline = time.monotonic() + HTTP_TIMEOUT_S
    with httpx2.Client(base_url=url, timeout=HTTP_TIMEOUT_S, trust_env=False) as client:
        while time.monotonic() < deadline:
            with suppress(httpx2.TransportError):
                if client.get("/ready").is_success:
                    return
            time.sleep(0.05)
    raise InvalidConfig(
        f"Nothing answers at {url}, though engine and frontend are up.",
        "Look at the logs of Ray Serve's HAProxy, or serve with --verbose.",
    )


def _root_cause(reports: list[str]) -> str:
    # Ray nests tracebacks in its messages; the last line that names an exception is ours.
    lines = [line.strip() for report in reports for line in report.splitlines() if line.strip()]
    named = [i for i, line in enumerate(lines) if line.startswith("engine.errors.")]
    return " ".join(lines[named[-1] : named[-1] + 2]) if named else "\n".join(lines[-12:])


def _greet(args: AppArgs, options: LaunchOptions, console: Console, elapsed_s: float) -> None:
    for model in args.models:
        if len(args.models) > 1:
            console.print(f"  {model.model_name}", highlight=False, markup=False)
        _describe(model, console)
    url = _url(options)
    names = [model.model_name for model in args.models]
    console.print(
        f"\n[bold green]Ready[/] after {elapsed_s:.1f} s: {', '.join(names)} at {url}\n\n"
        f"curl {url}/v1/chat/completions -H 'Content-Type: application/json' -d '"
        f'{{"model": "{names[0]}", "temperature": 0, "messages": '
        '[{"role": "user", "content": "What is the capital of France?"}]}\'\n\n'
        "Ctrl-C drains and stops.",
        highlight=False,
        soft_wrap=True,
    )


def _describe(model: ModelArgs, console: Console) -> None:
    handle = serve.get_deployment_handle(model.deployment_name, APP_NAME)
    handle._init(_run_router_in_separate_loop=True)  # the driver has no event loop of its own
    description = EngineDescription(**handle.describe.remote().result())
    for name, seconds in description.phase_times_s.items():
        console.print(f"    {name:<24}{seconds:6.1f} s", highlight=False)
    console.print(textwrap.indent(description.memory_plan, "    "), highlight=False)


def _url(options: LaunchOptions) -> str:
    host = "localhost" if options.host in ("0.0.0.0", "127.0.0.1") else options.host  # noqa: S104
    return f"http://{host}:{options.port}"


@contextmanager
def _phase(console: Console, name: str) -> Iterator[None]:
    started = time.monotonic()
    with console.status(name):
        yield
    console.print(f"  {name:<26}{time.monotonic() - started:6.1f} s", highlight=False)


def _interrupt(_signal: int, _frame: Any) -> None:
    raise KeyboardInterrupt
