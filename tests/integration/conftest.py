"""Real local Ray clusters and models for the integration tests."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.model import make_model
from tests.integration.deploying import ray_dashboard
from tests.integration.serving import Serving
from tests.oracle import make_checkpoint


@pytest.fixture(scope="module")
def smollm2_serving(
    smollm2_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Serving]:
    """The default model on one replica."""
    log = tmp_path_factory.mktemp("serve") / "log"
    options = ("--kv-cache-memory", "1GiB", "--log-format", "json")
    serving = Serving("smollm2", *options, log=log)
    try:
        serving.wait_ready()
        yield serving
    finally:
        serving.stop()


@pytest.fixture(scope="session")
def tiny_model(smollm2_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random Llama that splits in two, with SmolLM2's tokenizer."""
    folder = make_checkpoint(
        tmp_path_factory.mktemp("models") / "tiny",
        "llama",
        vocab_size=49152,
        max_position_embeddings=2048,
        eos_token_id=2,
    )
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(smollm2_path / name, folder)
    return folder


@pytest.fixture(scope="session")
def chaos_model(smollm2_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random Llama that gives the same tokens on every replica."""
    return make_model(tmp_path_factory.mktemp("models") / "chaos", smollm2_path)


@pytest.fixture
def dashboard() -> Iterator[str]:
    """URL of a Ray cluster's dashboard, where `serve deploy` goes."""
    with ray_dashboard() as url:
        yield url
