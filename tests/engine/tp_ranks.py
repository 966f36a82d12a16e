"""Ranks of a tensor-parallel group as real processes, for tests."""

import json
import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path

from engine.build import build_core
from engine.config import EngineConfig
from engine.core import EngineCore
from engine.device import choose_device
from engine.follower import run_follower
from engine.parallel import TensorParallel
from tests.engine.generation import generate

_JOIN_TIMEOUT_S = 120
Build = Callable[[EngineConfig, TensorParallel], EngineCore]
Follow = Callable[[EngineConfig, TensorParallel], None]


def generate_in_parallel(
    folder: Path,
    configs: list[EngineConfig],
    prompts: list[list[int]],
    num_tokens: int,
    build: Build = build_core,
    follow: Follow = run_follower,
) -> list[list[list[int]]]:
    """Return each engine's greedy tokens; one set of processes runs the engines in turn.

    Args:
        folder: for the meeting points and the result.
        configs: all with the same tensor parallel size.
        prompts: token ids.
        num_tokens: to generate for each.
        build: makes rank 0's engine.
        follow: what the other ranks do.
    """
    context = multiprocessing.get_context("spawn")
    size = configs[0].tensor_parallel_size
    ranks = [
        context.Process(
            target=_run_rank, args=(rank, folder, configs, prompts, num_tokens, build, follow)
        )
        for rank in range(size)
    ]
    for process in ranks:
        process.start()
    try:
        for process in ranks:
            process.join(_JOIN_TIMEOUT_S)
        assert [process.exitcode for process in ranks] == [0] * size
    finally:
        for process in ranks:
            process.kill()
            process.join()
    result: list[list[list[int]]] = json.loads((folder / "result.json").read_text())
    return result


def _run_rank(
    rank: int,
    folder: Path,
    configs: list[EngineConfig],
    prompts: list[list[int]],
    num_tokens: int,
    build: Build,
    follow: Follow,
) -> None:
    results = []
    if configs[0].device == "cuda":
        os.environ["CUDA_VISIBLE_DEVICES"] = str(rank)  # as Ray does
    for i, config in enumerate(configs):
        meeting_point = f"file://{folder}/meeting-point-{i}"
        size = config.tensor_parallel_size
        group = TensorParallel.join(rank, size, meeting_point, choose_device(config))
        if rank > 0:
            follow(config, group)
            continue
        core = build(config, group)
        results.append(generate(core, prompts, num_tokens))
        core.shutdown()
    if rank == 0:
        (folder / "result.json").write_text(json.dumps(results))
