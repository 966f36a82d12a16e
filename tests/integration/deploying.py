"""`serve deploy` of what `pageray config` prints, on a Ray cluster of the test's own."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import psutil

from deployments.serve_environment import haproxy_environment, serve_environment
from tests.integration.serving import free_port


@contextmanager
def ray_dashboard() -> Iterator[str]:
    """Run a Ray cluster; yield the URL of its dashboard, where `serve deploy` goes."""
    with ray_cluster() as addresses:
        yield "http://" + addresses["dashboard"]


@contextmanager
def ray_cluster() -> Iterator[dict[str, str]]:
    """Run a Ray cluster; yield what it says of itself: `dashboard` and `address`."""
    # Not tmp_path: the path of a socket may have 97 characters.
    folder = Path(tempfile.mkdtemp(prefix="pr-", dir="/tmp"))
    environment = {
        **os.environ,
        "TMPDIR": str(folder),
        **serve_environment(),
        **haproxy_environment(folder, free_port(), free_port(), free_port()),
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.integration.ray_head"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield json.loads(process.stdout.readline())
    finally:
        started = psutil.Process(process.pid).children(recursive=True)
        process.stdin.close()
        process.stdout.read()
        process.wait(60)
        process.stdout.close()
        _, alive = psutil.wait_procs(started, timeout=10)
        for child in alive:
            child.kill()
        shutil.rmtree(folder)
    assert not alive, f"left behind: {alive}"


def deploy(dashboard: str, folder: Path, *options: str) -> None:
    """Deploy what these options of `pageray config` make; the file goes into the folder."""
    config = subprocess.run(
        [sys.executable, "-m", "deployments.cli", "config", *options],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    file = folder / "app.yaml"
    file.write_text(config)
    serve = str(Path(sys.executable).with_name("serve"))
    # Whoever deploys shows the token that Ray made for this user.
    token = {**os.environ, "RAY_AUTH_MODE": "token"}
    command = [serve, "deploy", str(file), "-a", dashboard]
    done = subprocess.run(command, capture_output=True, env=token, text=True, check=False)
    assert done.returncode == 0, done.stderr


def is_ready(client: httpx2.Client) -> bool:
    """Whether a frontend answers and has its replicas."""
    try:
        return client.get("/ready").status_code == 200
    except httpx2.TransportError:
        return False
