"""AppArgs: agrees with the engine's settings and refuses what cannot work."""

from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from deployments.args import AppArgs
from deployments.tenant import ApiKey
from engine.config import EngineConfig, Preset
from engine.errors import InvalidConfig


def test_engine_settings_have_the_engines_names_and_defaults() -> None:
    by_device = {"max_num_batched_tokens"}
    for field in fields(EngineConfig):
        if field.default is not MISSING and field.name not in by_device:
            assert AppArgs.model_fields[field.name].default == field.default, field.name


def test_step_budget_fits_the_device_unless_one_is_given() -> None:
    for device, num_tokens in (("cpu", 512), ("cuda", 2048)):
        assert AppArgs().engine_config(device=device).max_num_batched_tokens == num_tokens
    given = AppArgs(max_num_batched_tokens=77, preset="throughput").engine_config(device="cpu")
    assert given.max_num_batched_tokens == 77


def test_throughput_takes_full_steps_on_every_device() -> None:
    for device in ("cpu", "cuda"):
        config = AppArgs(preset="throughput").engine_config(device=device)
        assert (config.preset, config.max_num_batched_tokens) == (Preset.THROUGHPUT, 2048)


def test_every_engine_setting_reaches_the_engine() -> None:
    given: dict[str, Any] = {
        "load_format": "dummy",
        "dtype": "bfloat16",
        "quantization": "w8a8",
        "block_size": 32,
        "kv_cache_dtype": "fp8",
        "kv_cache_bytes": 1 << 20,
        "memory_utilization": 0.5,
        "max_model_len": 100,
        "max_num_seqs": 7,
        "max_num_batched_tokens": 64,
        "preset": Preset.INTERACTIVE,
        "enable_prefix_caching": True,
        "host_kv_bytes": 1 << 30,
        "deterministic": True,
        "max_num_waiting": 9,
        "tensor_parallel_size": 3,
        "num_threads": 2,
    }
    args = AppArgs(model="some/model", **given)
    config = args.engine_config(device="cpu", model_path=Path("/models/some"))
    derived: dict[str, Any] = {
        "model_path": Path("/models/some"),
        "model_name": "some/model",
        "device": "cpu",
    }
    assert config == EngineConfig(**derived, **given)


def test_arguments_survive_a_serve_config_file() -> None:
    args = AppArgs(
        model="a/b", api_keys=(ApiKey.of("k"),), cache_dir=Path("/cache"), replicas_max=3
    )
    assert AppArgs(**args.model_dump(mode="json")) == args


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("smollm2", "smollm2"),
        ("Qwen/Qwen3-0.6B", "Qwen/Qwen3-0.6B"),
        ("/models/llama", "llama"),
        ("/models/tiny.gguf", "tiny"),
    ],
)
def test_model_name_is_what_a_user_would_call_it(model: str, name: str) -> None:
    assert AppArgs(model=model).model_name == name
    assert AppArgs(model=model, served_model_name="own").model_name == "own"


def test_home_in_cache_dir_is_expanded() -> None:
    assert AppArgs().cache_dir == Path.home() / ".cache" / "pageray"
    assert AppArgs(cache_dir=Path("~/models")).cache_dir == Path.home() / "models"


def test_unknown_argument_is_refused_by_name() -> None:
    with pytest.raises(ValidationError, match="max_sequences"):
        AppArgs.model_validate({"max_sequences": 3})


@pytest.mark.parametrize(
    ("arguments", "cause"),
    [
        ({"block_size": 3}, "block size is 3"),
        ({"tensor_parallel_size": 0}, "tensor_parallel_size is 0"),
        ({"host_kv_bytes": 1, "enable_prefix_caching": False}, "prefix caching is off"),
        ({"replicas_min": 2, "replicas_max": 1}, "below replicas_min 2"),
        ({"api_keys": ["good", " "]}, "An API key is empty"),
        ({"api_keys": "good"}, "api_keys is no list"),
        ({"api_keys": ["good", "good"]}, "api_keys[1] has the same key as api_keys[0]"),
    ],
)
def test_contradiction_is_refused_with_its_cause(arguments: dict[str, object], cause: str) -> None:
    with pytest.raises(InvalidConfig) as error:
        AppArgs.model_validate(arguments)
    assert cause in error.value.cause
    assert error.value.fix


def test_a_named_device_is_taken_at_its_word() -> None:
    assert AppArgs(device="cpu").device_kind() == "cpu"
    assert AppArgs(device="cuda").device_kind() == "cuda"


@pytest.mark.parametrize(("resources", "device"), [({"CPU": 2.0}, "cpu"), ({"GPU": 1.0}, "cuda")])
def test_device_auto_follows_what_the_ray_cluster_has(
    monkeypatch: pytest.MonkeyPatch, resources: dict[str, float], device: str
) -> None:
    monkeypatch.setattr("ray.cluster_resources", lambda: resources)
    assert AppArgs().device_kind() == device
