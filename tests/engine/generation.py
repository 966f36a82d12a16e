"""Run a real engine on prompts, greedily."""

from collections.abc import Sequence
from pathlib import Path

from engine.build import build_core
from engine.config import EngineConfig
from engine.core import EngineCore
from engine.parallel import TensorParallel
from engine.request import GenerateRequest
from engine.sampling_params import SamplingParams


def small_config(folder: Path, **changes: object) -> EngineConfig:
    """Settings for a small checkpoint on CPU in float32."""
    settings: dict[str, object] = {
        "model_path": folder,
        "model_name": "test",
        "device": "cpu",
        "dtype": "float32",
        "block_size": 4,
        "kv_cache_bytes": 4 << 20,
        "num_threads": 1,
    }
    return EngineConfig(**{**settings, **changes})  # type: ignore[arg-type]


def generate(
    core: EngineCore, prompts: Sequence[Sequence[int]], num_tokens: int
) -> list[list[int]]:
    """Return the greedy tokens of each prompt, all running together."""
    params = SamplingParams(temperature=0, max_tokens=num_tokens, ignore_eos=True)
    for i, prompt in enumerate(prompts):
        request = GenerateRequest(request_id=str(i), prompt_token_ids=list(prompt), params=params)
        core.add(request)
    token_ids: list[list[int]] = [[] for _ in prompts]
    while core.has_work:
        for output in core.step().outputs:
            token_ids[int(output.request_id)] += output.token_ids
    return token_ids


def generate_once(
    config: EngineConfig, prompts: Sequence[Sequence[int]], num_tokens: int
) -> list[list[int]]:
    """Build an engine of one rank, generate, shut it down."""
    core = build_core(config, TensorParallel.single())
    token_ids = generate(core, prompts, num_tokens)
    core.shutdown()
    return token_ids
