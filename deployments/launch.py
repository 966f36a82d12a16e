"""Starts the application on a Ray cluster, says what happens, and stops what it started."""

import io
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout, suppress
from typing import Any

import httpx2
import ray
from ray import serve
from ray.serve.config import HTTPOptions
from ray.serve.schema import LoggingConfig, ProxyStatus
from rich.console import Console

from deployments.app import build, num_cpus_needed
from deployments.args import AppArgs
from deployments.drain import drain
from deployments.greeting import greet, url_of
from deployments.launch_options import EVERYWHERE, LaunchOptions, LogFormat
from deployments.serve_peers import APP_NAME
from deployments.start_progress import told_what_it_waits_for
from engine.errors import InvalidConfig

SERVE_LOGGER = "ray.serve"
HTTP_TIMEOUT_S = 60.0


def serve_until_interrupted(args: AppArgs, options: LaunchOptions, console: Console) -> None:
    """Serve until SIGINT or SIGTERM, then drain and stop everything that was started.

    Raises InvalidConfig as `serving` does.
    """
    started = time.monotonic()
    try:
        with serving(args, options, console) as url:
            greet(args, url, console, time.monotonic() - started)
            threading.Event().wait()
    except KeyboardInterrupt:
        console.print("Stopped everything that was started here.")


@contextmanager
def serving(
    args: AppArgs, options: LaunchOptions, console: Console, *, drains: bool = True
) -> Iterator[str]:
    """Serve, and yield the URL for clients on this machine; then stop everything.

    `drains`: those who still wait for answers get them first.

    Raises InvalidConfig with the root cause when the application does not come up, and on a cluster
    that serves something already: it would be replaced, and stopped in the end.
    """
    if options.address is None:
        _check_port(options)
    with _ray(args, options, console):
        if serve.status().applications:
            raise InvalidConfig(
                f"The cluster at {options.address} serves something already.",
                "Ask that one, change it with `serve deploy`, or stop it first: `serve shutdown`.",
            )
        with _application(args, options, console, drains=drains):
            yield url_of(options) if options.address is None else _cluster_url(options)


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
    if not options.verbose:
        logging.getLogger(SERVE_LOGGER).setLevel(logging.ERROR)
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
def _application(
    args: AppArgs, options: LaunchOptions, console: Console, *, drains: bool
) -> Iterator[None]:
    with _phase(console, "start Ray Serve"):
        serve.start(http_options=HTTPOptions(host=options.host, port=options.port))
    has_clients = False
    try:
        with _phase(console, "start engine and frontend"):
            _deploy(args, options.log_format, console)
        has_clients = drains
        if options.address is None:  # a joined cluster may have no proxy on this machine
            with _phase(console, "open the port"):
                _wait_for_http(url_of(options))
        yield
    finally:
        if has_clients:
            console.print(
                "Draining: streams finish, new requests are refused. Ctrl-C cuts them off."
            )
        with _phase(console, "drain and stop"), _without_words_of_ray(options):
            if APP_NAME in serve.status().applications:
                if has_clients:
                    drain(APP_NAME, args.drain_timeout_s)
                serve.delete(APP_NAME)
            serve.shutdown()


def _deploy(args: AppArgs, log_format: LogFormat, console: Console) -> None:
    logging_config = LoggingConfig.model_validate(log_format.settings())
    try:
        with told_what_it_waits_for(APP_NAME, console):
            serve.run(build(args), name=APP_NAME, route_prefix="/", logging_config=logging_config)
    except RuntimeError as error:
        application = serve.status().applications.get(APP_NAME)
        reports = [str(error)]
        if application is not None:
            reports += [status.message for status in application.deployments.values()]
        raise _root_cause(reports) from error


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


def _root_cause(reports: list[str]) -> InvalidConfig:
    # Ray nests tracebacks in its messages; the last line that names an exception is ours.
    lines = [line.strip() for report in reports for line in report.splitlines() if line.strip()]
    named = [i for i, line in enumerate(lines) if line.startswith("engine.errors.")]
    if not named:
        return InvalidConfig("\n".join(lines[-12:]), "Serve with --verbose to see all of it.")
    _, _, cause = lines[named[-1]].partition(": ")
    fix = lines[named[-1] + 1 : named[-1] + 2]
    return InvalidConfig(cause, fix[0] if fix else "Serve with --verbose to see all of it.")


def _cluster_url(options: LaunchOptions) -> str:
    """Of a proxy on a cluster that was joined: on this machine if there is one, else anywhere."""
    if options.host != EVERYWHERE:
        return url_of(options)  # each node listens there, or none that has no such address
    here = ray.get_runtime_context().get_node_id()
    deadline = time.monotonic() + HTTP_TIMEOUT_S
    while time.monotonic() < deadline:
        proxies = serve.status().proxies
        healthy = [node for node, state in proxies.items() if state is ProxyStatus.HEALTHY]
        if healthy:
            addresses = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes()}
            url = f"http://{addresses[here if here in healthy else min(healthy)]}:{options.port}"
            _wait_for_http(url)
            return url
        time.sleep(0.2)
    raise InvalidConfig(
        "The application is up, but no node of the cluster has a healthy proxy.",
        "Look at the logs of Ray Serve's HAProxy.",
    )


@contextmanager
def _phase(console: Console, name: str) -> Iterator[None]:
    started = time.monotonic()
    with console.status(name):
        yield
    console.print(f"  {name:<26}{time.monotonic() - started:6.1f} s", highlight=False)


def _interrupt(_signal: int, _frame: Any) -> None:
    raise KeyboardInterrupt
