"""What a long prompt does to those who stream, and what each preset gives up for it.

One engine's weights, a fresh core for each measurement:
- stall: some sequences decode; then a prompt of 4096 tokens comes. The gaps between their tokens
  (ITL) while it prefills, against the gaps before and after.
- throughput: workload B, output tokens/s with 16 sequences at once.
Run alone on the machine: `python -m tests.benchmarks.stall`.
"""

import argparse
import json
import random
import statistics
import time
from dataclasses import dataclass, replace
from pathlib import Path

from engine.build import BuildReport, build_runner
from engine.config import EngineConfig, Preset
from engine.core import EngineCore
from engine.input_batch import InputBatch
from engine.model_executor import ModelExecutor
from engine.model_store import DEFAULT_MODEL, resolve_model
from engine.parallel import TensorParallel
from engine.request import GenerateRequest
from engine.sampler import Sampler
from engine.sampling_params import SamplingParams
from tests.benchmarks.workload import WORKLOADS, make_asks, read_words

LONG_PROMPT = 4096
NUM_STREAMS = 4


@dataclass
class Bench:
    """The model, and cores over it."""

    config: EngineConfig
    executor: ModelExecutor
    report: BuildReport

    def core(self, preset: Preset) -> EngineCore:
        """Return a fresh core with nothing cached."""
        return EngineCore(
            replace(self.config, preset=preset),
            self.executor,
            max_model_len=self.report.memory.max_model_len,
            eos_token_ids=frozenset(),
            vocab_size=self.report.model.vocab_size,
        )


def build(model: Path) -> Bench:
    """Load the model once."""
    config = EngineConfig(model_path=model, model_name="bench", max_num_batched_tokens=512)
    group = TensorParallel.single()
    runner, report = build_runner(config, group)
    rows = InputBatch(
        max_num_seqs=config.max_num_seqs,
        max_model_len=report.memory.max_model_len,
        block_size=config.block_size,
    )
    sampler = Sampler(report.model.vocab_size)
    return Bench(config, ModelExecutor(runner, rows, sampler, group), report)


def ask(name: str, num_tokens: int, max_tokens: int, draw: random.Random) -> GenerateRequest:
    """Return a request with a random prompt."""
    return GenerateRequest(
        request_id=name,
        prompt_token_ids=[draw.randrange(1000, 49152) for _ in range(num_tokens)],
        params=SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True),
    )


def measure_stall(core: EngineCore, seed: int) -> dict[str, float]:
    """Return ITL p99 undisturbed and disturbed, their ratio, and the long prompt's TTFT."""
    draw = random.Random(seed)
    core.add(ask("learn", 300, 4, draw))
    while core.has_work:
        core.step()
    for i in range(NUM_STREAMS):
        core.add(ask(f"stream{i}", 64, 4000, draw))
    while core.snapshot().num_queued_prefill_tokens:
        core.step()
    gaps: dict[str, list[float]] = {"undisturbed": [], "disturbed": []}
    for _ in range(200):
        gaps["undisturbed"].append(step_s(core))
    core.add(ask("long", LONG_PROMPT, 2, draw))
    started = time.perf_counter()
    while core.snapshot().num_queued_prefill_tokens:
        gaps["disturbed"].append(step_s(core))
    ttft_s = time.perf_counter() - started
    core.abort("long")
    # The streams have grown meanwhile, and a longer one takes longer: both ends count.
    for _ in range(200):
        gaps["undisturbed"].append(step_s(core))
    core.abort_all()
    tails = {kind: quantile(values, 0.99) for kind, values in gaps.items()}
    return {
        "itl_p99_s": tails["undisturbed"],
        "itl_p99_disturbed_s": tails["disturbed"],
        "ratio": tails["disturbed"] / tails["undisturbed"],
        "median_ratio": statistics.median(gaps["disturbed"])
        / statistics.median(gaps["undisturbed"]),
        "long_ttft_s": ttft_s,
    }


def step_s(core: EngineCore) -> float:
    """Run a step: every stream gets a token in each, so its time is the gap between two."""
    started = time.perf_counter()
    core.step()
    return time.perf_counter() - started


def measure_throughput(core: EngineCore, model: Path, seed: int) -> dict[str, float]:
    """Return output tokens/s of workload B, closed loop."""
    workload = WORKLOADS["B"]
    asks = make_asks(workload, read_words(model), seed)
    waiting = [
        GenerateRequest(
            request_id=str(i),
            prompt_token_ids=a.prompt_token_ids,
            params=SamplingParams(temperature=0, max_tokens=a.max_tokens, ignore_eos=True),
        )
        for i, a in enumerate(asks)
    ]
    started = time.perf_counter()
    num_live = num_tokens = 0
    while waiting or core.has_work:
        while waiting and num_live < workload.concurrency:
            core.add(waiting.pop())
            num_live += 1
        for output in core.step().outputs:
            num_tokens += len(output.token_ids)
            num_live -= output.finish_reason is not None
    return {"tokens_per_s": num_tokens / (time.perf_counter() - started)}


def quantile(values: list[float], share: float) -> float:
    """Return the value that this share of the values does not exceed."""
    return sorted(values)[int(share * (len(values) - 1))]


def main() -> None:
    """Measure each preset in turn, print medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--presets", default=",".join(Preset))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--cache-dir", type=Path, default=Path.home() / ".cache" / "pageray")
    options = parser.parse_args()
    bench = build(resolve_model(DEFAULT_MODEL, cache_dir=options.cache_dir))
    presets = [Preset(name) for name in options.presets.split(",")]
    runs: dict[str, list[dict[str, float]]] = {preset: [] for preset in presets}
    for seed in range(options.repeats):
        for preset in presets:
            stall = measure_stall(bench.core(preset), seed)
            runs[preset].append(
                stall | measure_throughput(bench.core(preset), bench.config.model_path, seed)
            )
            print(preset, {key: round(value, 4) for key, value in runs[preset][-1].items()})
    report = {
        preset: {key: statistics.median(run[key] for run in of_preset) for key in of_preset[0]}
        for preset, of_preset in runs.items()
    }
    for name, figures in report.items():
        print(
            f"{name:<12} ITL p99 under a {LONG_PROMPT}-token prompt {figures['ratio']:.2f}x "
            f"(median {figures['median_ratio']:.2f}x), its TTFT {figures['long_ttft_s']:.1f} s; "
            f"B {figures['tokens_per_s']:.1f} tok/s"
        )
    if options.json:
        options.json.write_text(json.dumps({"medians": report, "runs": runs}, indent=1))


if __name__ == "__main__":
    main()
