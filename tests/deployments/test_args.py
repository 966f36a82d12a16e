"""AppArgs: agrees with the engine's settings and refuses what cannot work."""

from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from deployments.args import AppArgs, ModelArgs
from deployments.tenant import ApiKey
from engine.config import EngineConfig, Preset
from engine.errors import InvalidConfig


def test_engine_settings_have_the_engines_names_and_defaults() -> None:
    by_device = {"max_num_batched_tokens"}
    for field in fields(EngineConfig):
        if field.default is not MISSING and field.name not in by_device:
            assert ModelArgs.model_fields[field.name].default == field.default, field.name


def test_step_budget_fits_the_device_unless_one_is_given() -> None:
    for device, num_tokens in (("cpu", 512), ("cuda", 2048)):
        assert ModelArgs().engine_config(device=device).max_num_batched_tokens == num_tokens
    given = ModelArgs(max_num_batched_tokens=77, preset="throughput").engine_config(device="cpu")
    assert given.max_num_batched_tokens == 77


def test_throughput_takes_full_steps_on_every_device() -> None:
    for device in ("cpu", "cuda"):
        config = ModelArgs(preset="throughput").engine_config(device=device)
        assert (config.preset, config.max_num_batched_tokens) == (Preset.THROUGHPUT, 2048)


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan"), float("inf")])
def test_a_request_cannot_be_held_for_ever_or_not_at_all(seconds: float) -> None:
    # Those who are refused are told to come back within that time.
    with pytest.raises(ValidationError, match="max_held_s"):
        ModelArgs(max_held_s=seconds)


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
    args = ModelArgs(model="some/model", **given)
    config = args.engine_config(device="cpu", model_path=Path("/models/some"))
    derived: dict[str, Any] = {
        "model_path": Path("/models/some"),
        "model_name": "some/model",
        "device": "cpu",
    }
    assert config == EngineConfig(**derived, **given)


def test_arguments_survive_a_serve_config_file() -> None:
    models = (
        ModelArgs(model="a/b", replicas_max=3, accelerator_labels={"gpu": "h100"}),
        ModelArgs(model="/c/d", served_model_name="e", max_model_len=77, dtype="float32"),
    )
    args = AppArgs(models=models, api_keys=(ApiKey.of("k"),), cache_dir=Path("/cache"))
    assert AppArgs(**args.model_dump(mode="json")) == args


def test_a_single_model_needs_no_list() -> None:
    given = {"model": "a/b", "max_num_seqs": 8, "num_frontends": 2}
    models = (ModelArgs(model="a/b", max_num_seqs=8),)
    assert AppArgs.model_validate(given) == AppArgs(models=models, num_frontends=2)
    assert AppArgs.model_validate({"num_frontends": 2}).models == (ModelArgs(),)
    with pytest.raises(ValidationError, match="max_num_seqs"):
        AppArgs.model_validate({"models": [{"model": "a/b"}], "max_num_seqs": 8})
    with pytest.raises(ValidationError, match="models"):
        AppArgs.model_validate({"models": []})


@pytest.mark.parametrize(
    ("names", "cause"),
    [
        (["a/b", "a/b"], "Two models are called 'a/b'"),
        (["a/b", "c", "a-b"], "'a/b' and 'a-b' differ in punctuation alone"),
    ],
)
def test_models_have_names_of_their_own(names: list[str], cause: str) -> None:
    with pytest.raises(InvalidConfig, match=cause):
        AppArgs(models=tuple(ModelArgs(model=name) for name in names))
    own = [ModelArgs(model=name, served_model_name=f"m{i}") for i, name in enumerate(names)]
    assert len(AppArgs(models=tuple(own)).models) == len(names)


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
    assert ModelArgs(model=model).model_name == name
    assert ModelArgs(model=model, served_model_name="own").model_name == "own"


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
        ({"served_model_name": ""}, "has an empty name"),
        ({"accelerator_labels": {"gpu": ""}}, "'gpu: ' selects no node"),
        ({"accelerator_labels": {"": "h100"}}, "': h100' selects no node"),
        ({"accelerator_labels": {"gpu": "h100 h200"}}, "selects no node"),
        ({"accelerator_labels": {"gpu": "in()"}}, "selects no node"),
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
    assert ModelArgs(device="cpu").device_kind() == "cpu"
    assert ModelArgs(device="cuda").device_kind() == "cuda"


@pytest.mark.parametrize(("resources", "device"), [({"CPU": 2.0}, "cpu"), ({"GPU": 1.0}, "cuda")])
def test_device_auto_follows_what_the_ray_cluster_has(
    monkeypatch: pytest.MonkeyPatch, resources: dict[str, float], device: str
) -> None:
    monkeypatch.setattr("ray.cluster_resources", lambda: resources)
    assert ModelArgs().device_kind() == device
