"""Fixtures of every test: the real model, and guards on GPUs and Ray."""

import importlib.util
import os
from pathlib import Path

import pytest

INTEGRATION = Path(__file__).parent / "integration"

# Triton decides when it is imported, by whomever, whether its interpreter is on: before all else.
if not Path("/dev/nvidiactl").exists():
    os.environ["TRITON_INTERPRET"] = "1"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests that need a GPU where there is none."""
    gpu_items = [item for item in items if item.get_closest_marker("gpu")]
    if not gpu_items:
        return
    import torch  # the slowest import of all, so only where it decides something

    if torch.cuda.is_available():
        return
    for item in gpu_items:
        item.add_marker(pytest.mark.skip(reason="needs a CUDA device, and torch sees none"))


@pytest.fixture(autouse=True)
def forbid_ray(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep Ray clusters out of every test but those in tests/integration."""
    if INTEGRATION in request.path.parents or importlib.util.find_spec("ray") is None:
        return  # GPU machines run engine and kernels without it
    import ray

    def refuse(*_args: object, **_settings: object) -> None:
        raise AssertionError("only tests in tests/integration may start Ray")

    monkeypatch.setattr(ray, "init", refuse)


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    """Folder of SmolLM2-135M-Instruct, as `make test` has pulled it; fetches nothing."""
    pytest.importorskip("typer", reason="PageRay's command line is not installed here")
    pytest.importorskip("httpx2", reason="PageRay's command line is not installed here")
    from deployments.cli import default_cache_dir
    from engine.model_store import DEFAULT_MODEL, resolve_model

    def refuse(_phase: str, _done: int, _total: int) -> None:
        pytest.fail(
            "SmolLM2 is not in the model cache, and tests fetch nothing.\n"
            "Run `make test`, or `make setup` and `.venv/bin/pageray pull smollm2`."
        )

    return resolve_model(DEFAULT_MODEL, cache_dir=default_cache_dir(os.environ), report=refuse)
