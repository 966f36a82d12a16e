"""Keep converted models on disk: each is built once, by one process, and appears whole.

A model is built in a temporary folder beside its place and renamed when it is complete. A lock
per model, which the kernel drops when its holder dies, makes other processes wait; whoever holds
it knows that temporary folders of that model are left over from processes that died.
"""

import fcntl
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from engine.errors import InvalidConfig, InvalidModel
from engine.model_folder import missing_files
from engine.progress import Report

Build = Callable[[Path, Path], None]

SOURCE_NAME = "source.json"


class ModelCache:
    """Model folders under one directory."""

    def __init__(self, cache_dir: Path) -> None:
        self._models = cache_dir / "models"

    def get(
        self, name: str, source: Mapping[str, str | int], build: Build, *, report: Report
    ) -> Path:
        """Return the folder of a model, building it when it is missing or its source changed.

        `source` says what the model was made from. `build(folder, scratch)` fills `folder`;
        `scratch` is an empty folder for whatever else it needs.
        """
        folder = self._models / name
        try:
            if self._is_current(folder, source):
                return folder
            self._models.mkdir(parents=True, exist_ok=True)
            with self._lock(name, report):
                # Another process may have built it while this one waited.
                if not self._is_current(folder, source):
                    self._build(folder, source, build)
        except OSError as error:
            raise InvalidConfig(
                f"The model cache '{self._models}' cannot be used: {error}.",
                "Make room or permission there, or choose another cache folder.",
            ) from error
        return folder

    def _is_current(self, folder: Path, source: Mapping[str, str | int]) -> bool:
        try:
            marker = json.loads((folder / SOURCE_NAME).read_text(encoding="utf-8"))
            return bool(marker == source) and not missing_files(folder)
        except (FileNotFoundError, ValueError, InvalidModel):
            return False  # not there, or spoilt by somebody: build it anew

    @contextmanager
    def _lock(self, name: str, report: Report) -> Iterator[None]:
        # The file stays: were it removed, a waiter could hold a lock nobody else sees.
        with (self._models / f".{name}.lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                report(f"Waiting for another process that fetches {name}", 0, 0)
                fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _build(self, folder: Path, source: Mapping[str, str | int], build: Build) -> None:
        prefix = f".{folder.name}.tmp-"
        for leftover in self._models.iterdir():
            if leftover.name.startswith(prefix):
                # A download that outlived its killed parent may still write there; what cannot
                # be removed now goes the next time.
                shutil.rmtree(leftover, ignore_errors=True)
        with tempfile.TemporaryDirectory(prefix=prefix, dir=self._models) as temporary:
            new, scratch = Path(temporary, "new"), Path(temporary, "scratch")
            new.mkdir()
            scratch.mkdir()
            build(new, scratch)
            (new / SOURCE_NAME).write_text(json.dumps(dict(source)), encoding="utf-8")
            if folder.exists():
                folder.rename(Path(temporary, "old"))
            new.rename(folder)
