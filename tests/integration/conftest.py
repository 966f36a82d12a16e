"""Real local Ray clusters for the integration tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.serving import Serving


@pytest.fixture(scope="module")
def smollm2_serving(
    smollm2_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Serving]:
    """The default model on one replica."""
    log = tmp_path_factory.mktemp("serve") / "log"
    serving = Serving("smollm2", "--kv-cache-memory", "1GiB", log=log)
    try:
        serving.wait_ready()
        yield serving
    finally:
        serving.stop()
