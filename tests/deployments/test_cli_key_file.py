"""The file of `--api-keys-file`: what it may hold, and that its keys show nowhere."""

import json
import sys
from pathlib import Path

import pytest
import yaml

from deployments import cli
from deployments.args import AppArgs
from deployments.cli_key_file import read_key_file
from deployments.tenant import ApiKey
from engine.errors import InvalidConfig

ENTRIES = [
    {"key": "sk-secret-1", "tenant": "acme", "weight": 2.0, "priority": 3},
    {"key_sha256": ApiKey.of("sk-secret-2").key_sha256, "tenant": "acme"},
]
KEYS = (
    ApiKey(key_sha256=ApiKey.of("sk-secret-1").key_sha256, tenant="acme", weight=2.0, priority=3),
    ApiKey(key_sha256=ApiKey.of("sk-secret-2").key_sha256, tenant="acme", weight=1.0, priority=0),
)


@pytest.mark.parametrize("dump", [json.dumps, yaml.safe_dump])
def test_yaml_and_json_mean_the_same(tmp_path: Path, dump: object) -> None:
    file = write(tmp_path, dump(ENTRIES) if callable(dump) else "")
    assert read_key_file(file) == KEYS


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("", "an empty list"),
        ("[]", "an empty list"),
        ("key: sk-secret", "no list"),
        ("- sk-secret", "entry 1 is no mapping"),
        ("- {key: sk-secret, tenant: a}\n- {key: sk-other, tenant: b, weight: .nan}", "entry 2"),
        ("- {key: sk-secret, tenant: a}\n- {key: sk-other}\n", "entry 2: tenant"),
        (
            "- {key: sk-secret, tenant: a}\n- {key: b, tenant: a}\n- {key: sk-secret, tenant: c}",
            "entry 3 has the same key as {file}: entry 1",
        ),
        ("- {key: *secret, tenant: a}", "neither YAML nor JSON at line 1"),
        ("- {key: %secret, tenant: a}", "neither YAML nor JSON at line 1"),
        ("- key: sk-secret\n tenant: a", "neither YAML nor JSON at line 2"),
        ("- {key: !secret x, tenant: a}", "neither YAML nor JSON at line 1"),
        ("- {key: 2026-99-99, tenant: a}", "neither YAML nor JSON"),
        ("- {key: secret\x00, tenant: a}", "neither YAML nor JSON"),
    ],
)
def test_wrong_file_is_refused_by_name_without_its_keys(
    tmp_path: Path, text: str, cause: str
) -> None:
    file = write(tmp_path, text)
    with pytest.raises(InvalidConfig) as error:
        read_key_file(file)
    assert error.value.cause.startswith(str(file))
    assert cause.format(file=file) in error.value.cause
    assert error.value.fix
    assert "secret" not in str(error.value)


def test_unreadable_file_is_refused_by_name(tmp_path: Path) -> None:
    for path in (tmp_path / "missing.yaml", tmp_path):
        with pytest.raises(InvalidConfig, match="cannot be read") as error:
            read_key_file(path)
        assert str(path) in error.value.cause


def test_config_prints_digests_and_tenants_of_the_file_and_no_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path, yaml.safe_dump(ENTRIES))
    words = ["config", "some/model", "--api-keys-file", str(file), "--api-key", "sk-secret-3"]
    monkeypatch.setattr(sys, "argv", ["pageray", *words])
    with pytest.raises(SystemExit):
        cli.main()
    output = capsys.readouterr().out
    assert "sk-secret" not in output
    [application] = yaml.safe_load(output)["applications"]
    args = AppArgs.model_validate(application["args"])
    assert args.api_keys == (ApiKey.of("sk-secret-3"), *KEYS)


def test_a_file_with_admins_alone_is_refused_for_it_closes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path, "[{key: sk-secret-1, tenant: ops, admin: true}]")
    monkeypatch.setattr(sys, "argv", ["pageray", "config", "--api-keys-file", str(file)])
    with pytest.raises(SystemExit) as ending:
        cli.main()
    assert ending.value.code == 2
    assert "anybody could generate" in capsys.readouterr().err


def test_key_of_the_file_that_is_given_as_an_option_too_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path, yaml.safe_dump(ENTRIES))
    words = ["config", "--api-keys-file", str(file), "--api-key", "sk-secret-1"]
    monkeypatch.setattr(sys, "argv", ["pageray", *words])
    with pytest.raises(SystemExit) as ending:
        cli.main()
    assert ending.value.code == 2
    error = capsys.readouterr().err
    assert "api_keys[1] has the same key as api_keys[0]" in error
    assert "sk-secret" not in error


def write(folder: Path, text: str) -> Path:
    file = folder / "keys.yaml"
    file.write_text(text)
    return file
