"""Commands and files of README that reach the start of a service, with the start replaced."""

import hashlib
import re
from pathlib import Path

from deployments.cli_key_file import read_key_file
from tests.deployments.command_line import Launches, Run
from tests.readme.command_check import words_of
from tests.readme.document import readme


def test_a_model_of_the_hub(run: Run, launches: Launches) -> None:
    [text] = [c.text for c in readme().commands() if c.text.startswith("pageray serve Qwen/")]
    assert run(*words_of(text)[1:]) == (0, "", "")
    model = launches.model()
    assert model.model == "Qwen/Qwen3-0.6B"
    assert (model.tensor_parallel_size, model.max_model_len) == (2, 8192)
    assert (model.replicas_min, model.replicas_max) == (1, 4)


def test_several_models(run: Run, launches: Launches, tmp_path: Path) -> None:
    file = tmp_path / "app.yaml"
    file.write_text(readme().block("yaml", "models:"))
    address = ("--address", "10.0.0.1:6379")
    assert run("serve", "--config", str(file), *address) == (0, "", "")
    assert launches.args is not None
    large, small = launches.args.models
    assert (large.model, large.tensor_parallel_size) == ("meta-llama/Llama-3.1-70B", 4)
    assert (large.replicas_min, large.replicas_max) == (1, 4)
    assert large.accelerator_labels == {"gpu": "h100"}
    assert (small.model, small.model_name) == ("Qwen/Qwen3-0.6B", "small")
    assert {large.max_num_seqs, small.max_num_seqs} == {64}
    assert launches.options is not None
    assert launches.options.port == 8000


def test_keys_and_tenants(tmp_path: Path) -> None:
    text = readme().block("yaml", "key_sha256")
    # What README cuts short: a digest has 64 digits.
    short = re.search(r"key_sha256: (\w+)\.\.\.", text)
    assert short
    digest = hashlib.sha256(b"KEY").hexdigest()
    file = tmp_path / "keys.yaml"
    file.write_text(text.replace(f"{short[1]}...", digest))
    first, second = read_key_file(file)
    assert (first.tenant, first.weight, first.priority) == ("acme", 2, 0)
    assert (second.tenant, second.weight, second.priority) == ("acme", 1, 10)
    assert second.key_sha256 == digest
    assert "`printf %s KEY | sha256sum`" in text, "which is that digest"
