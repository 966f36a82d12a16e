"""The file of `--config`: options by name, as on the command line."""

from pathlib import Path

import pytest

from deployments.args import AppArgs
from deployments.launch_options import LaunchOptions
from deployments.tenant import ApiKey
from tests.deployments.command_line import Launches, Run


def test_config_file_gives_options_and_command_line_comes_first(
    run: Run, launches: Launches, tmp_path: Path
) -> None:
    file = tmp_path / "pageray.yaml"
    file.write_text(
        "model: some/model\nmax_num_seqs: 8\nnum-shard: 2\nreplicas: 1:4\n"
        "enable-prefix-caching: false\napi-key: [a, b]\ndashboard: no\nport: 9000\n"
    )
    code, _, error = run("serve", "--config", str(file), "--port", "9001", "--cache-dir", "/cache")
    assert (code, error) == (0, "")
    assert launches.args == AppArgs(
        model="some/model",
        cache_dir=Path("/cache"),
        max_num_seqs=8,
        tensor_parallel_size=2,
        replicas_min=1,
        replicas_max=4,
        enable_prefix_caching=False,
        api_keys=(ApiKey.of("a"), ApiKey.of("b")),
    )
    assert launches.options == LaunchOptions(port=9001, dashboard=False)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("max-num-sequences: 8", ['no option "max-num-sequences"', 'Did you mean "max-num-seqs"']),
        ("config: other.yaml", ['no option "config"']),
        ("port: [1, 2]", ["port has more than one value"]),
        ("just words", ["holds no options"]),
        ("a: [", ["cannot be read"]),
        ("port: high", ["port"]),
    ],
)
def test_wrong_config_file_is_refused(
    run: Run, launches: Launches, tmp_path: Path, text: str, words: list[str]
) -> None:
    file = tmp_path / "pageray.yaml"
    file.write_text(text)
    code, _, error = run("serve", "--config", str(file))
    assert code == 2
    for word in words:
        assert word in error
    assert launches.args is None


def test_empty_config_file_changes_nothing(run: Run, launches: Launches, tmp_path: Path) -> None:
    file = tmp_path / "pageray.yaml"
    file.write_text("# nothing yet\n")
    assert run("serve", "--config", str(file)) == (0, "", "")
    assert launches.options == LaunchOptions()
