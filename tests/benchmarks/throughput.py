"""Output tokens/s of the bare engine beside transformers: same weights, dtype and prompts.

Every measurement is a process of its own; the systems take turns, and ratios are of medians.
Run alone on the machine: `make bench`.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

from engine.model_store import DEFAULT_MODEL, resolve_model
from tests.benchmarks.workload import WORKLOADS

SYSTEMS = {
    "pageray": ["tests.benchmarks.offline_pageray"],
    "padded": ["tests.benchmarks.offline_transformers", "padded"],
    "continuous": ["tests.benchmarks.offline_transformers", "continuous"],
}


def measure(system: str, model: Path, workload: str, seed: int) -> dict[str, float]:
    """Run one workload on one system in a fresh process."""
    # Without it the kernel may leave both compute threads of a peer on one core for many seconds;
    # our engine sees to that itself.
    environment = {**os.environ} | ({} if system == "pageray" else {"OMP_PROC_BIND": "true"})
    command = [sys.executable, "-W", "ignore", "-m", *SYSTEMS[system]]
    done = subprocess.run(
        [*command, str(model), workload, str(seed)],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    if done.returncode:
        raise SystemExit(f"{system} failed on {workload}:\n{done.stderr[-3000:]}")
    result: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def main() -> None:
    """Measure, print a table as it grows, write the JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workloads", default="A,B,C,M16,M64")
    parser.add_argument("--systems", default=",".join(SYSTEMS))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--cache-dir", type=Path, default=Path.home() / ".cache" / "pageray")
    options = parser.parse_args()
    model = resolve_model(DEFAULT_MODEL, cache_dir=options.cache_dir)
    systems = options.systems.split(",")
    report = {}
    print(f"{'workload':<10}" + "".join(f"{system:>14}" for system in systems) + "   ours/best")
    for name in options.workloads.split(","):
        runs: dict[str, list[dict[str, float]]] = {system: [] for system in systems}
        for seed in range(options.repeats):
            for system in systems:
                runs[system].append(measure(system, model, WORKLOADS[name].name, seed))
        medians = {
            system: {key: statistics.median(run[key] for run in of_system) for key in of_system[0]}
            for system, of_system in runs.items()
        }
        rates = {system: medians[system]["tokens_per_s"] for system in systems}
        peers = [rates[system] for system in systems if system != "pageray"]
        ratio = rates.get("pageray", 0) / max(peers) if peers else 0
        print(f"{name:<10}" + "".join(f"{rates[s]:>8.1f} tok/s" for s in systems), end="")
        print(f"{ratio:>9.2f}x", flush=True)
        report[name] = {"medians": medians, "runs": runs, "ratio": ratio}
    if options.json:
        options.json.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
