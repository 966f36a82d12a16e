"""Where peers live: virtual environments of their own and what is built in them."""

import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tests.benchmarks.failure import PeerUnavailable

LOG_TAIL = 1500
TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
"""Has the CPU builds of torch that PyPI lacks."""

# Runs in the peer's environment: its pip knows how to read a requirement.
_REQUIREMENTS = """
import sys
from importlib.metadata import requires
from pip._vendor.packaging.requirements import Requirement
for text in requires(sys.argv[1]) or []:
    requirement = Requirement(text)
    if requirement.name in sys.argv[2:]:
        continue
    if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
        continue
    requirement.marker = None
    print(requirement)
"""


def once(mark: Path, content: str, make: Callable[[], None]) -> None:
    """Make something unless a file says that it is there whole; `content` names what it is."""
    if mark.exists() and mark.read_text() == content:
        return
    mark.parent.mkdir(parents=True, exist_ok=True)
    mark.unlink(missing_ok=True)
    make()
    mark.write_text(content)


def run(
    command: Sequence[str | Path], cwd: Path | None = None, env: Mapping[str, str] | None = None
) -> str:
    """Run to the end and return what it printed. Raises PeerUnavailable when it fails."""
    try:
        done = subprocess.run(
            [str(part) for part in command],
            cwd=cwd,
            env={**os.environ, **(env or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError as error:
        raise PeerUnavailable(f"{command[0]}: {error}") from error
    if done.returncode:
        said = (done.stdout + done.stderr).strip()[-LOG_TAIL:]
        raise PeerUnavailable(f"'{' '.join(map(str, command[:6]))} ...' failed: {said}")
    return done.stdout


class PeerVenv:
    """A virtual environment that holds one peer."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.folder / "bin" / "python"

    def path_variable(self) -> str:
        """PATH with its programs first."""
        return f"{self.folder / 'bin'}{os.pathsep}{os.environ['PATH']}"

    def make(self) -> None:
        """Make it, empty, where it is not there yet."""
        if not self.python.exists():
            run([sys.executable, "-m", "venv", self.folder])

    def pip(self, *arguments: str | Path) -> str:
        """Run its pip."""
        return run([self.python, "-m", "pip", "--disable-pip-version-check", *arguments])

    def install(self, requirement: str, without: Sequence[str] = ()) -> None:
        """Install a distribution with its requirements but some. Raises PeerUnavailable."""

        def make() -> None:
            print(f"installing {requirement} into {self.folder}", flush=True)
            self.make()
            self.pip("install", "--no-deps", requirement)
            name = requirement.partition("==")[0]
            needed = run([self.python, "-c", _REQUIREMENTS, name, *without]).splitlines()
            try:
                self.pip("install", *needed)
            except PeerUnavailable:
                self.pip("install", "--extra-index-url", TORCH_CPU_INDEX, *needed)

        once(self.folder / "installed", requirement, make)
