"""The engine as a whole: tokens per second when it is saturated, and how soon a process answers."""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from engine import LLM, SamplingParams
from tests.benchmarks.gpu.bench import Bench, Rows

_START_TIMEOUT_S = 120.0


def measure_throughput(bench: Bench, folder: Path) -> Rows:
    """Yield output tokens per second of each workload."""
    sizes = bench.sizes
    with LLM(
        folder,
        load_format="dummy",
        device=bench.device.place.type,
        max_model_len=sizes.prompt_tokens + max(tokens for _, tokens in sizes.workloads),
        max_num_batched_tokens=max(sizes.prefills),
        kv_cache_bytes=sizes.kv_cache_bytes,
        enable_prefix_caching=False,
    ) as llm:
        llm.generate(sizes.prompts(2), SamplingParams(temperature=0, max_tokens=4, ignore_eos=True))
        for num_seqs, num_output in sizes.workloads:
            prompts = sizes.prompts(num_seqs)
            params = SamplingParams(temperature=0, max_tokens=num_output, ignore_eos=True)
            started = time.perf_counter()
            llm.generate(prompts, params)
            wall_s = time.perf_counter() - started
            in_and_out = f"{sizes.prompt_tokens} in, {num_output} out"
            yield {
                "what": f"{folder.name} engine, {num_seqs} requests, {in_and_out}",
                "s": wall_s,
                "tokens/s": num_seqs * num_output / wall_s,
            }


def measure_first_token(bench: Bench, folder: Path) -> Rows:
    """Yield the time from the start of a process to its first token, with and without kernels."""
    settings = {"device": bench.device.place.type, "kv_cache_bytes": bench.sizes.kv_cache_bytes}
    command = [sys.executable, "-m", "tests.benchmarks.gpu.first_token"]
    with tempfile.TemporaryDirectory() as cache:
        for kernels in ("no kernel cached", "kernels cached"):
            started = time.perf_counter()
            done = subprocess.run(
                [*command, str(folder), json.dumps(settings)],
                env={**os.environ, "TRITON_CACHE_DIR": cache},
                capture_output=True,
                text=True,
                timeout=_START_TIMEOUT_S,
                check=False,
            )
            wall_s = time.perf_counter() - started
            what = f"{folder.name} process to first token, {kernels}"
            if done.returncode:
                yield {"what": what, "error": done.stderr.strip()[-500:]}
                return
            yield {"what": what, "s": wall_s, **json.loads(done.stdout)}
