"""ModelCache: models appear whole or not at all, and are built once."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from engine.errors import InvalidConfig
from engine.model_cache import ModelCache

SOURCE = {"version": 1}
spawn = multiprocessing.get_context("spawn")


def ignore(phase: str, done: int, total: int) -> None:
    """Report to nobody."""


def fill(folder: Path, scratch: Path, text: str = "{}") -> None:
    """Write what counts as a model."""
    (scratch / "left").write_text("over")
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (folder / name).write_text(text)


def refuse(folder: Path, scratch: Path) -> None:
    raise AssertionError("the model was there already")


def models(cache_dir: Path) -> list[str]:
    """Return what lies in the cache beside the locks."""
    return [p.name for p in (cache_dir / "models").iterdir() if not p.name.endswith(".lock")]


def test_model_is_built_once(tmp_path: Path) -> None:
    cache = ModelCache(tmp_path)
    folder = cache.get("m", SOURCE, fill, report=ignore)
    assert (folder / "config.json").is_file()
    assert cache.get("m", SOURCE, refuse, report=ignore) == folder
    assert models(tmp_path) == ["m"]


def test_model_of_another_source_replaces_the_old_one(tmp_path: Path) -> None:
    cache = ModelCache(tmp_path)
    cache.get("m", SOURCE, fill, report=ignore)
    folder = cache.get("m", {"version": 2}, lambda f, s: fill(f, s, "new"), report=ignore)
    assert (folder / "config.json").read_text() == "new"
    assert cache.get("m", {"version": 2}, refuse, report=ignore) == folder
    assert models(tmp_path) == ["m"]


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "source.json"])
def test_folder_that_lost_a_file_is_built_again(name: str, tmp_path: Path) -> None:
    cache = ModelCache(tmp_path)
    folder = cache.get("m", SOURCE, fill, report=ignore)
    (folder / name).unlink()
    assert (cache.get("m", SOURCE, fill, report=ignore) / name).is_file()


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_failed_build_leaves_nothing(error: type[BaseException], tmp_path: Path) -> None:
    def fail(folder: Path, scratch: Path) -> None:
        fill(folder, scratch)
        raise error

    cache = ModelCache(tmp_path)
    with pytest.raises(error):
        cache.get("m", SOURCE, fail, report=ignore)
    assert models(tmp_path) == []
    cache.get("m", SOURCE, fill, report=ignore)


def test_failed_build_keeps_the_old_model(tmp_path: Path) -> None:
    def fail(folder: Path, scratch: Path) -> None:
        raise RuntimeError

    cache = ModelCache(tmp_path)
    folder = cache.get("m", SOURCE, fill, report=ignore)
    with pytest.raises(RuntimeError):
        cache.get("m", {"version": 2}, fail, report=ignore)
    assert cache.get("m", SOURCE, refuse, report=ignore) == folder


def test_cache_that_cannot_be_used_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidConfig, match=r"file/models.*cannot be used"):
        ModelCache(tmp_path / "file").get("m", SOURCE, fill, report=ignore)


def build_and_hang(cache_dir: Path, started: Connection) -> None:
    """Run in a process of its own: begin a build and never end it."""

    def hang(folder: Path, scratch: Path) -> None:
        fill(folder, scratch)
        started.send(None)
        signal.pause()

    ModelCache(cache_dir).get("m", SOURCE, hang, report=ignore)


def killed_while_building(cache_dir: Path) -> None:
    parent, child = spawn.Pipe()
    process = spawn.Process(target=build_and_hang, args=(cache_dir, child))
    process.start()
    parent.recv()
    process.kill()
    process.join()
    process.close()


def test_what_a_killed_process_left_is_no_model_and_goes_at_the_next_build(tmp_path: Path) -> None:
    killed_while_building(tmp_path)
    assert len(models(tmp_path)) == 1
    assert not (tmp_path / "models" / "m").exists()
    ModelCache(tmp_path).get("m", SOURCE, fill, report=ignore)
    assert models(tmp_path) == ["m"]


def test_leftovers_of_other_models_are_left_alone(tmp_path: Path) -> None:
    # They may belong to a build that is still going on.
    killed_while_building(tmp_path)
    ModelCache(tmp_path).get("other", SOURCE, fill, report=ignore)
    assert len(models(tmp_path)) == 2


def test_second_build_at_the_same_time_waits_and_takes_the_first_ones_model(tmp_path: Path) -> None:
    building, waiting = threading.Event(), threading.Event()
    phases: list[str] = []

    def build(folder: Path, scratch: Path) -> None:
        building.set()
        assert waiting.wait(30)
        fill(folder, scratch)

    def report(phase: str, done: int, total: int) -> None:
        phases.append(phase)
        waiting.set()

    first = threading.Thread(target=run, args=(tmp_path, build))
    first.start()
    assert building.wait(30)
    folder = ModelCache(tmp_path).get("m", SOURCE, refuse, report=report)
    first.join()
    assert (folder / "config.json").is_file()
    assert phases == ["Waiting for another process that fetches m"]


def run(cache_dir: Path, build: Callable[[Path, Path], None]) -> None:
    ModelCache(cache_dir).get("m", SOURCE, build, report=ignore)


def build_in_process(cache_dir: Path, log: Path) -> None:
    """Run in a process of its own: get the model and note that it was built here."""

    def build(folder: Path, scratch: Path) -> None:
        with log.open("a") as file:
            file.write(f"{os.getpid()}\n")
        fill(folder, scratch)

    folder = ModelCache(cache_dir).get("m", SOURCE, build, report=ignore)
    assert (folder / "config.json").is_file()


def test_processes_that_start_together_build_once(tmp_path: Path) -> None:
    log = tmp_path / "log"
    processes = [spawn.Process(target=build_in_process, args=(tmp_path, log)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    assert len(log.read_text().splitlines()) == 1
    assert models(tmp_path) == ["m"]
