"""Put an engine together from its settings, and tell what it took."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from engine.activation_memory import activation_bytes, example_step
from engine.block_move import MoveKind
from engine.compute_threads import ComputeThreads
from engine.config import EngineConfig
from engine.core import EngineCore
from engine.cuda_graph import GraphRecorder
from engine.determinism import check_deterministic
from engine.device import (
    check_kv_cache_dtype,
    choose_device,
    choose_dtype,
    choose_packing,
    set_num_threads,
)
from engine.dummy_checkpoint import DummyCheckpoint
from engine.errors import InvalidConfig
from engine.gpu_sampler import GpuSampler
from engine.graph_sizes import GraphSizes
from engine.host import available_host_bytes
from engine.input_batch import InputBatch
from engine.kv_cache import (
    MemoryPlan,
    attention_geometry,
    cache_budget,
    choose_max_model_len,
    num_blocks_in,
    num_host_blocks_in,
)
from engine.latest_tokens import LatestTokens
from engine.model_config import ModelConfig, check_parallel_size
from engine.model_executor import BatchSampler, ModelExecutor
from engine.model_runner import ModelRunner
from engine.models.decoder import Decoder
from engine.models.decoder_weights import load_decoder
from engine.parallel import TensorParallel
from engine.progress import Report
from engine.rotary import rotation_table
from engine.sampler import Sampler
from engine.step_time import StepTimeFit, work_of_chunks
from engine.weight_reader import open_weights
from engine.weights import WeightSource

_WARM_UP_TOKENS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildReport:
    """What start-up found and how long it took."""

    model: ModelConfig
    device: str
    dtype: str
    memory: MemoryPlan
    step_time: StepTimeFit
    """What the warm-up taught of a step's time."""
    phase_s: dict[str, float]
    """Seconds of each phase, in order."""


@dataclass(frozen=True, slots=True)
class BuiltEngine:
    """A core ready to serve and the story of its start."""

    core: EngineCore
    report: BuildReport


def build_core(
    config: EngineConfig, group: TensorParallel, report: Report | None = None
) -> EngineCore:
    """Build rank 0's engine. See `build_engine`."""
    return build_engine(config, group, report).core


def build_engine(
    config: EngineConfig, group: TensorParallel, report: Report | None = None
) -> BuiltEngine:
    """Build rank 0's engine while the other ranks are in `run_follower`.

    Args:
        config: the same on every rank.
        group: joined by every rank.
        report: told how far loading has come.

    Raises InvalidModel, InvalidConfig.
    """
    runner, built = build_runner(config, group, report)
    input_batch = InputBatch(
        max_num_seqs=config.max_num_seqs,
        max_model_len=built.memory.max_model_len,
        block_size=config.block_size,
    )
    executor = ModelExecutor(runner, input_batch, _sampler(built), group)
    core = EngineCore(
        config,
        executor,
        max_model_len=built.memory.max_model_len,
        eos_token_ids=built.model.eos_token_ids,
        vocab_size=built.model.vocab_size,
        step_time=built.step_time,
    )
    return BuiltEngine(core, built)


def build_runner(
    config: EngineConfig, group: TensorParallel, report: Report | None = None
) -> tuple[ModelRunner, BuildReport]:
    """Build one rank: load its weights, size and allocate its KV cache, warm up."""
    clock = _PhaseClock()
    if group.size != config.tensor_parallel_size:
        raise InvalidConfig(
            f"The group has {group.size} ranks, the settings say {config.tensor_parallel_size}.",
            "Start as many ranks as the tensor parallel size.",
        )
    device = choose_device(config)
    with clock.phase("read config"):
        model = ModelConfig.from_folder(config.model_path)
        check_parallel_size(model, group.size)
    dtype = choose_dtype(config, model, device)
    check_deterministic(config, model, device, dtype)
    packing = choose_packing(config, model, device, dtype)
    check_kv_cache_dtype(config, device)
    set_num_threads(config, device, dtype)
    threads = ComputeThreads(torch.get_num_threads() if device.type == "cpu" else 1)
    with (
        clock.phase("load weights"),
        threads.placed(),
        _weight_source(config, model, device) as weights,
    ):
        decoder = load_decoder(weights, model, group, device, dtype, packing, report)
    with clock.phase("allocate KV cache"), threads.placed():
        memory = _plan_memory(config, model, decoder, group, dtype, device)
        geometry = attention_geometry(
            model,
            group.size,
            dtype,
            config.block_size,
            memory.num_blocks,
            is_float8=config.has_float8_kv,
        )
        rotations = rotation_table(model.rope, model.head_dim, memory.max_model_len, device)
        latest = LatestTokens(group, config.max_num_seqs, device)
        runner = ModelRunner(
            decoder, geometry, rotations, latest, device, threads, memory.num_host_blocks
        )
    max_blocks = -(-memory.max_model_len // config.block_size)
    runner.reserve(config.max_num_seqs, max_blocks)
    if device.type == "cuda" and not config.enforce_eager:
        with clock.phase("record graphs"):
            runner.record_graphs(GraphRecorder(), GraphSizes.up_to(config.max_num_seqs), max_blocks)
    with clock.phase("warm up"), threads.placed():
        step_time = _warm_up(runner, config, memory)
    return runner, BuildReport(
        model=model,
        device=str(device),
        dtype=str(dtype).removeprefix("torch."),
        memory=memory,
        step_time=step_time,
        phase_s=clock.phase_s,
    )


def _sampler(built: BuildReport) -> BatchSampler:
    if not built.device.startswith("cuda"):
        return Sampler(built.model.vocab_size)
    sampler = GpuSampler(built.model.vocab_size, torch.device(built.device))
    sampler.warm_up(getattr(torch, built.dtype))
    return sampler


def _weight_source(config: EngineConfig, model: ModelConfig, device: torch.device) -> WeightSource:
    if config.needs_weights:
        return open_weights(config.model_path, device)
    return DummyCheckpoint(model.dtype, device, model.quantization)


def _plan_memory(
    config: EngineConfig,
    model: ModelConfig,
    decoder: Decoder,
    group: TensorParallel,
    dtype: torch.dtype,
    device: torch.device,
) -> MemoryPlan:
    num_activation_bytes = activation_bytes(config, model, decoder, dtype, device)
    one_block = attention_geometry(
        model, group.size, dtype, config.block_size, num_blocks=1, is_float8=config.has_float8_kv
    )
    block_bytes = one_block.block_bytes * model.num_layers
    budget = group.minimum(cache_budget(config, group.size, device, num_activation_bytes))
    num_blocks = num_blocks_in(budget, block_bytes)
    return MemoryPlan(
        weight_bytes=decoder.num_bytes,
        activation_bytes=num_activation_bytes,
        kv_cache_bytes=num_blocks * block_bytes,
        block_bytes=block_bytes,
        num_blocks=num_blocks,
        block_size=config.block_size,
        max_model_len=choose_max_model_len(config, model, num_blocks),
        num_host_blocks=num_host_blocks_in(config, group.size, block_bytes, available_host_bytes()),
    )


def _warm_up(runner: ModelRunner, config: EngineConfig, memory: MemoryPlan) -> StepTimeFit:
    """Run prefills and decodes, so that the first request waits for no library to get ready.

    The second time they are timed: the first long prompt must not stall others either.
    """
    step_time = StepTimeFit()
    num_tokens = min(_WARM_UP_TOKENS, config.max_num_batched_tokens, memory.max_model_len)
    for is_timed in (False, True):
        for query_lens in ([1], [num_tokens]):
            started = time.perf_counter()
            step = example_step(query_lens, config.block_size, num_rows=1)
            # A copy that changes nothing: the first real ones would wait for their kernel, and
            # be taken for as slow as that for long.
            moves = np.array([[MoveKind.COPY, 0, 0]] * (len(query_lens) > 1), dtype=np.int32)
            logits = runner.forward(replace(step, moves=moves.reshape(-1, 3)))
            if logits is not None and logits.is_cuda:
                torch.cuda.synchronize(logits.device)
            if is_timed:
                step_time.observe(work_of_chunks(query_lens), time.perf_counter() - started)
    return step_time


@dataclass(frozen=True, slots=True)
class _PhaseClock:
    phase_s: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.phase_s[name] = time.perf_counter() - started
