"""`pageray pull` shows the phases of a fetch, and nothing when there is nothing to do."""

import io
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from deployments.cli_pull import pull
from engine.errors import InvalidModel, ModelNotFound

Report = Callable[[str, int, int], None]


def run(monkeypatch: pytest.MonkeyPatch, work: Callable[[Report], None]) -> str:
    """Pull a model whose fetching is `work`; return what the terminal shows."""

    def resolve_model(model: str, *, cache_dir: Path, report: Report, **_: object) -> Path:
        work(report)
        return cache_dir / model

    monkeypatch.setattr("deployments.cli_pull.resolve_model", resolve_model)
    shown = io.StringIO()
    console = Console(file=shown, width=120, force_terminal=True)
    try:
        assert pull("tiny", Path("/cache"), console) == Path("/cache/tiny")
    finally:
        # A live display hides the cursor; whatever happens, the terminal gets it back.
        assert shown.getvalue().count("\x1b[?25l") == shown.getvalue().count("\x1b[?25h")
    return shown.getvalue()


def test_each_phase_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    def work(report: Report) -> None:
        report("Waiting", 0, 0)
        report("Downloading", 0, 2_000_000)
        report("Downloading", 2_000_000, 2_000_000)

    shown = run(monkeypatch, work)
    assert "Waiting" in shown
    assert "Downloading" in shown
    assert "100%" in shown


def test_model_that_is_there_shows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(monkeypatch, lambda _report: None) == ""


def test_failure_leaves_the_terminal_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    def work(report: Report) -> None:
        report("Downloading", 1, 2)
        raise ModelNotFound("It is gone.", "Look elsewhere.")

    with pytest.raises(ModelNotFound):
        run(monkeypatch, work)


def test_a_spoilt_file_is_found_when_asked_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    blob, folder = tmp_path / "blobs" / ("0" * 64), tmp_path / "snapshots" / "abc"
    blob.parent.mkdir()
    folder.mkdir(parents=True)
    blob.write_bytes(b"spoilt")
    (folder / "model.safetensors").symlink_to(blob)
    monkeypatch.setattr("deployments.cli_pull.resolve_model", lambda *_, **__: folder)
    console = Console(file=io.StringIO(), record=True)
    assert pull("a/b", tmp_path, console) == folder
    assert console.export_text() == ""
    with pytest.raises(InvalidModel, match="is not what the hub has"):
        pull("a/b", tmp_path, console, checks_digests=True)


def test_it_says_how_much_was_checked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("deployments.cli_pull.resolve_model", lambda *_, **__: tmp_path)
    console = Console(file=io.StringIO(), record=True)
    pull("smollm2", tmp_path, console, checks_digests=True)
    assert "nothing was checked" in console.export_text()
    monkeypatch.setattr("deployments.cli_pull.check_digests", lambda *_: 3)
    pull("a/b", tmp_path, console, checks_digests=True)
    assert "3 files are what the hub has" in console.export_text()
