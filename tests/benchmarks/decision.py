"""How long a placement takes, and how much memory its prefix index.

    python -m tests.benchmarks.decision [--replicas 1000] [--blocks 256]

`turns`: replicas have cached the prompt up to one of the few places where its conversation had
turns. `worst`: up to any place, so that the walk over it parts at every block.
"""

import argparse
import json
import random
import statistics
import time
import tracemalloc
from collections.abc import Sequence

from cluster.board import Board
from cluster.prefix_index import PrefixIndex
from cluster.request_need import RequestNeed
from engine.snapshot import EngineSnapshot

TRIES = 2000
NUM_TURNS = 8
STEP_TIME_S = (0.010, 0.0001, 0.0002)
BLOCK_SIZE = 16


def board_of(
    num_replicas: int, keys: tuple[int, ...], depths: Sequence[int], rng: random.Random
) -> Board:
    """Return a board on which every replica has reported and has some of the prompt."""
    board = Board()
    names = [f"replica-{i}" for i in range(num_replicas)]
    board.set_members({name: {} for name in names})
    for name in names:
        num_free = rng.randint(10_000, 25_000)
        board.update(
            name,
            EngineSnapshot(
                epoch="e",
                sequence=1,
                block_size=BLOCK_SIZE,
                num_blocks=28_800,
                num_free_blocks=num_free,
                num_evictable_blocks=0,
                num_running=rng.randint(0, 100),
                num_queued_prefill_tokens=rng.randint(0, 10_000),
                step_time_s=STEP_TIME_S,
                max_num_seqs=256,
            ),
        )
        board._index.add(board._fleet.row(name), keys[: rng.choice(depths)])
    return board


def decision_us(num_replicas: int, num_blocks: int, num_depths: int) -> list[float]:
    """Return the microseconds of each of many placements."""
    rng = random.Random(0)
    keys = tuple(rng.getrandbits(64) for _ in range(num_blocks))
    depths = sorted(rng.sample(range(num_blocks + 1), num_depths))
    board = board_of(num_replicas, keys, depths, rng)
    taken = []
    for i in range(TRIES):
        need = RequestNeed(
            request_id=f"r{i}", num_prompt_tokens=num_blocks * BLOCK_SIZE + 5, block_keys=keys
        )
        started = time.perf_counter()
        board.choose(need)
        taken.append(1e6 * (time.perf_counter() - started))
        board.release(need.request_id)
    return taken


def index_bytes_per_block(num_replicas: int, num_blocks: int) -> float:
    """Return the memory of an index, over its blocks, each cached by a few replicas."""
    rng = random.Random(0)
    keys = [rng.getrandbits(64) for _ in range(num_blocks)]
    tracemalloc.start()
    index = PrefixIndex()
    for i in range(0, num_blocks, 100):
        for _ in range(3):
            index.add(rng.randrange(num_replicas), keys[i : i + 100])
    size = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    return size / num_blocks


def summary(values: list[float]) -> dict[str, float]:
    """Return what is reported of them."""
    ordered = sorted(values)
    return {
        "min": ordered[0],
        "median": statistics.median(ordered),
        "p90": ordered[len(ordered) * 9 // 10],
    }


def main() -> None:
    """Print it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--replicas", type=int, default=1000)
    parser.add_argument("--blocks", type=int, default=256)
    options = parser.parse_args()
    cases = {"turns": NUM_TURNS, "worst": options.blocks + 1}
    report = {
        "replicas": options.replicas,
        "blocks": options.blocks,
        "decision_us": {
            name: summary(decision_us(options.replicas, options.blocks, num_depths))
            for name, num_depths in cases.items()
        },
        "index_bytes_per_block": index_bytes_per_block(options.replicas, 100_000),
    }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
