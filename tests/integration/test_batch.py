"""`pageray batch` with Ray and a model: stopped midway, and finished on another cluster."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from tests.chaos.model import MODEL_OPTIONS
from tests.integration.deploying import ray_cluster
from tests.integration.serving import free_port, wait_until

pytestmark = [pytest.mark.ray, pytest.mark.slow]

NUM_REQUESTS = 300


@contextmanager
def batch(files: tuple[Path, Path], log: Path, *words: str) -> Iterator[subprocess.Popen[bytes]]:
    """The command, of which nothing must be left in the end."""
    command = [sys.executable, "-m", "deployments.cli", "batch", *map(str, files), *words]
    # Not tmp_path: the path of a socket may have 97 characters.
    folder = Path(tempfile.mkdtemp(prefix="pr-", dir="/tmp"))
    with log.open("w") as output:
        process = subprocess.Popen(
            [*command, *MODEL_OPTIONS, "--port", str(free_port())],
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, "TMPDIR": str(folder)},
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            process.wait(60)
        _, alive = psutil.wait_procs(started_in(folder), timeout=10)
        for child in alive:
            child.kill()
        shutil.rmtree(folder)
    assert not alive, f"left behind: {alive}\n{log.read_text()}"


def started_in(folder: Path) -> list[psutil.Process]:
    """Whatever has inherited the environment of a command, whose end it may have outlived."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get("TMPDIR") == str(folder):
                found.append(process)
    return found


def test_a_batch_that_is_stopped_is_finished_by_the_next_run(
    chaos_model: Path, tmp_path: Path
) -> None:
    files = (tmp_path / "input.jsonl", tmp_path / "output.jsonl")
    ids = [f"document-{i}" for i in range(NUM_REQUESTS)]
    with files[0].open("w") as file:
        for i, custom_id in enumerate(ids):
            body = {"prompt": list(range(2000 + i, 2050 + i)), "max_tokens": 64, "ignore_eos": True}
            line = {"custom_id": custom_id, "method": "POST", "url": "/v1/completions"}
            file.write(json.dumps({**line, "body": body}) + "\n")

    def num_answers() -> int:
        return files[1].read_bytes().count(b"\n") if files[1].exists() else 0

    log = tmp_path / "log"
    with batch(files, log, str(chaos_model), "--concurrency", "8") as process:
        wait_until(lambda: num_answers() > 20 or process.poll() is not None, 120, "answers")
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130, log.read_text()
    assert 20 < num_answers() < NUM_REQUESTS, log.read_text()
    with files[1].open("a") as file:
        file.write('{"id": "batch_req_0", "custom_id": "document-29')

    with ray_cluster() as cluster:
        words = (str(chaos_model), "--address", cluster["address"])
        with batch(files, log, *words) as process:
            assert process.wait(200) == 0, log.read_text()
    answers = [json.loads(line) for line in files[1].read_text().splitlines()]
    assert sorted(answer["custom_id"] for answer in answers) == sorted(ids)
    for answer in answers:
        assert answer["response"]["status_code"] == 200
        assert answer["response"]["body"]["usage"]["completion_tokens"] == 64
