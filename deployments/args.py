"""What the Serve application is built from: settings of the model, its engines and the frontends.

One validated model for the command line, for `serve run` and for Serve config files. Names no
host and no port: those belong to the cluster (see `deployments.launch_options`).
"""

import re
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from cluster.admission_limits import AdmissionLimits
from cluster.policy_name import DEFAULT_POLICY, PolicyName
from deployments.tenant import ApiKey, check_distinct
from deployments.trace_export import TraceExport
from engine.config import EngineConfig, Preset
from engine.errors import InvalidConfig

DEFAULT_CACHE_DIR = Path("~/.cache/pageray")
DEFAULT_BATCHED_TOKENS = {"cpu": 512, "cuda": 2048}
MOST_BATCHED_TOKENS = 2048

# As Ray has them, which would only say so when the application is built.
_NAME = r"[a-zA-Z0-9](?:[a-zA-Z0-9_.-]{0,61}[a-zA-Z0-9])?"
_LABEL = re.compile(rf"(?:{_NAME}/)?{_NAME}")
_LABEL_VALUE = re.compile(rf"!?(?:{_NAME}|in\({_NAME}(?:, ?{_NAME})*\))")


class ModelArgs(BaseModel):
    """One model: what it is, how its engines run it and on how many replicas."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    model: str = "smollm2"
    """Local folder, GGUF file, hub id, or the embedded default."""
    served_model_name: str | None = None
    """Name that requests use; None: taken from `model`."""
    load_format: Literal["auto", "dummy"] = "auto"

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    quantization: Literal["w8a8", "fp8"] | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: cuda when the Ray cluster has a GPU."""
    block_size: int = 16
    kv_cache_dtype: Literal["auto", "fp8", "fp8_e4m3"] = "auto"
    kv_cache_bytes: int | None = Field(default=None, ge=1)
    memory_utilization: float = 0.9
    max_model_len: int | None = Field(default=None, ge=1)
    max_num_seqs: int = 256
    max_num_batched_tokens: int | None = None
    """None: 512 on CPU, where a step should stay well below a second, otherwise 2048."""
    preset: Literal["interactive", "balanced", "throughput"] = "balanced"
    enable_prefix_caching: bool = True
    host_kv_bytes: int = Field(default=0, ge=0)
    deterministic: bool = False
    enforce_eager: bool = False
    max_num_waiting: int = Field(default=4096, ge=1)
    tensor_parallel_size: int = 1
    num_threads: int | None = Field(default=None, ge=1)

    replicas_min: int = Field(default=1, ge=0)
    """0: nothing runs while nobody asks; the first request then waits for a start."""
    replicas_max: int = Field(default=1, ge=1)
    scale_down_delay_s: float = Field(default=300.0, gt=0)
    """A replica goes only if it was not needed for so long, or for three cold starts."""
    scale_to_zero_delay_s: float = Field(default=300.0, gt=0)
    """The last one goes so long after the last request, where replicas_min is 0."""
    max_held_requests: int = Field(default=4096, ge=1)
    """Requests that each frontend lets wait for a replica with room."""
    max_held_tokens: int = Field(default=1 << 24, ge=1)
    """Of their prompts."""
    max_held_s: float = Field(default=60.0, gt=0, allow_inf_nan=False)
    """Longest time that a request may wait."""
    ttft_objective_s: float = Field(default=5.0, gt=0)
    """A first token within so long is in time, for the autoscaler."""
    accelerator_labels: dict[str, str] = {}
    """Labels of the nodes that its replicas may run on, each with a value or one of Ray's label
    selectors: `h100`, `!h100`, `in(h100, h200)`."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.replicas_max < self.replicas_min:
            raise InvalidConfig(
                f"replicas_max is {self.replicas_max}, below replicas_min {self.replicas_min}.",
                "Give the smaller number first: --replicas MIN:MAX.",
            )
        for label, value in self.accelerator_labels.items():
            if not (_LABEL.fullmatch(label) and _LABEL_VALUE.fullmatch(value)):
                raise InvalidConfig(
                    f"'{label}: {value}' selects no node by its labels.",
                    "Give a label and a value, like `gpu: h100`, `gpu: '!h100'` or "
                    "`gpu: in(h100, h200)`.",
                )
        if not self.model_name.strip():
            raise InvalidConfig("The model has an empty name.", "Give a served model name.")
        self.engine_config(device="cpu")  # raises what the engine would refuse
        return self

    @property
    def model_name(self) -> str:
        """Name that requests use."""
        if self.served_model_name is not None:
            return self.served_model_name
        path = Path(self.model)
        if path.suffix == ".gguf":
            return path.stem
        return path.name if path.is_absolute() else self.model

    @property
    def deployment_name(self) -> str:
        """Name of the Serve deployment of its replicas."""
        return "Replica-" + re.sub(r"[^\w.-]", "-", self.model_name, flags=re.ASCII)

    @property
    def cached_block_size(self) -> int | None:
        """Tokens in a block of the prefix cache; None: there is none."""
        return self.block_size if self.enable_prefix_caching else None

    @property
    def needs_weights(self) -> bool:
        """Whether the model has to come with its weights."""
        return self.load_format != "dummy"

    def admission_limits(self) -> AdmissionLimits:
        """How much each frontend lets wait."""
        return AdmissionLimits(
            max_requests=self.max_held_requests,
            max_tokens=self.max_held_tokens,
            max_wait_s=self.max_held_s,
        )

    def device_kind(self) -> str:
        """`cpu` or `cuda`. With device auto this asks Ray, which must be connected."""
        if self.device != "auto":
            return self.device
        import ray  # noqa: PLC0415  the command line reads its arguments without waiting for Ray

        return "cuda" if ray.cluster_resources().get("GPU", 0) > 0 else "cpu"

    def engine_config(self, *, device: str, model_path: Path | None = None) -> EngineConfig:
        """Settings of each engine. Without `model_path`, every rank puts in its node's own."""
        num_batched_tokens = self.max_num_batched_tokens
        if num_batched_tokens is None:
            num_batched_tokens = DEFAULT_BATCHED_TOKENS[device]
            if self.preset == "throughput":
                num_batched_tokens = MOST_BATCHED_TOKENS
        return EngineConfig(
            model_path=model_path or Path(self.model),
            model_name=self.model_name,
            load_format=self.load_format,
            dtype=self.dtype,
            quantization=self.quantization,
            device=device,
            block_size=self.block_size,
            kv_cache_dtype=self.kv_cache_dtype,
            kv_cache_bytes=self.kv_cache_bytes,
            memory_utilization=self.memory_utilization,
            max_model_len=self.max_model_len,
            max_num_seqs=self.max_num_seqs,
            max_num_batched_tokens=num_batched_tokens,
            preset=Preset(self.preset),
            enable_prefix_caching=self.enable_prefix_caching,
            host_kv_bytes=self.host_kv_bytes,
            deterministic=self.deterministic,
            enforce_eager=self.enforce_eager,
            max_num_waiting=self.max_num_waiting,
            tensor_parallel_size=self.tensor_parallel_size,
            num_threads=self.num_threads,
        )


class AppArgs(BaseModel):
    """Arguments of `deployments.app:build`: the endpoint and its models.

    Unknown names are refused. The fields of a single model may stand beside those of the endpoint
    in place of `models`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    models: tuple[ModelArgs, ...] = Field(default=(ModelArgs(),), min_length=1)
    cache_dir: Path = DEFAULT_CACHE_DIR
    """Where every node keeps the models it fetched."""
    num_frontends: int = Field(default=1, ge=1)
    """HTTP processes in front of the replicas."""
    router_policy: str = DEFAULT_POLICY
    """How requests are placed on replicas, see cluster/policies.py."""
    drain_timeout_s: float = Field(default=60.0, gt=0)
    """Longest time that running requests get when the service stops, which then cuts them off, or
    when their replica does, which moves them to another one."""

    api_keys: tuple[ApiKey, ...] = Field(default=(), repr=False)
    """Keys of which clients must send one; empty: anybody may ask. A text is a key by itself."""
    max_body_bytes: int = Field(default=4 << 20, ge=1)
    """Largest HTTP request body."""
    trace_export: TraceExport | None = None
    """Where traces go; None: nothing is traced."""

    @model_validator(mode="before")
    @classmethod
    def _gather_single_model(cls, given: Any) -> Any:
        if not isinstance(given, dict) or "models" in given:
            return given
        names = given.keys() & ModelArgs.model_fields.keys()
        if not names:
            return given
        rest = {name: value for name, value in given.items() if name not in names}
        return {**rest, "models": [{name: given[name] for name in names}]}

    @field_validator("cache_dir")
    @classmethod
    def _expand_home(cls, cache_dir: Path) -> Path:
        return cache_dir.expanduser()

    @field_validator("api_keys", mode="before")
    @classmethod
    def _read_keys(cls, api_keys: object) -> tuple[ApiKey, ...]:
        if not isinstance(api_keys, list | tuple):
            raise InvalidConfig("api_keys is no list.", "Give a list, of one key too.")
        keys = tuple(_read_key(key, f"api_keys[{i}]") for i, key in enumerate(api_keys))
        check_distinct((f"api_keys[{i}]", key) for i, key in enumerate(keys))
        return keys

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.router_policy not in tuple(PolicyName):
            raise InvalidConfig(
                f"There is no router policy '{self.router_policy}'.",
                f"Use one of {', '.join(PolicyName)}.",
            )
        seen: dict[str, str] = {}
        for name, deployment_name in ((m.model_name, m.deployment_name) for m in self.models):
            if deployment_name in seen:
                other = seen[deployment_name]
                raise InvalidConfig(
                    f"Two models are called '{name}'."
                    if other == name
                    else f"The models '{other}' and '{name}' differ in punctuation alone.",
                    "Give one of them another served model name.",
                )
            seen[deployment_name] = name
        return self


def _read_key(key: object, place: str) -> ApiKey:
    if isinstance(key, ApiKey):
        return key
    return ApiKey.of(key) if isinstance(key, str) else ApiKey.read(key, place)
