"""Ten thousand random requests: each ends once and rightly, and no block stays held.

Traffic is made so that blocks run short all the time: prompts of a few families come back again and
again, pools hold few of them, the forecast is hopeful. The counts at the end of each test show that
the rare paths were taken often.
"""

import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from queue import SimpleQueue
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.block_move import MoveKind
from engine.config import Preset
from engine.errors import PageRayError
from engine.loop import EngineLoop
from engine.output import StepOutput
from engine.request import GenerateRequest
from engine.sampling_params import SamplingParams
from engine.snapshot import EngineSnapshot
from tests.engine.checked_core import VOCAB, CheckedCore

BLOCK_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
NUM_REQUESTS = 10_000
TIMEOUT_S = 60  # only ever reached by a failing test


@dataclass(frozen=True)
class Load:
    """One engine and the seed of its traffic."""

    block_size: int
    num_spare_blocks: int
    """Blocks beyond what the longest request needs."""
    num_host_blocks: int
    enable_prefix_caching: bool
    preset: Preset
    step_share: float
    """Most tokens in a step, as a share of the longest prompt."""
    max_num_seqs: int
    is_hopeful: bool
    is_overlapping: bool
    move_s: float
    seed: int

    @property
    def max_model_len(self) -> int:
        """A few blocks of tokens, and enough tokens where blocks are small."""
        return max(48, int(2.5 * self.block_size))

    def engine(self) -> CheckedCore:
        """Build the engine."""
        num_blocks = -(-self.max_model_len // self.block_size) + self.num_spare_blocks
        return CheckedCore(
            num_blocks=num_blocks,
            max_model_len=self.max_model_len,
            num_host_blocks=self.num_host_blocks if self.enable_prefix_caching else 0,
            is_hopeful=self.is_hopeful,
            is_overlapping=self.is_overlapping,
            move_s=self.move_s,
            block_size=self.block_size,
            enable_prefix_caching=self.enable_prefix_caching,
            preset=self.preset,
            max_num_batched_tokens=max(1, int(self.step_share * self.max_model_len)),
            max_num_seqs=self.max_num_seqs,
            max_num_waiting=24,
        )

    def requests(self) -> Iterator[GenerateRequest]:
        """Make requests without end."""
        rng = Random(self.seed)
        number = 0
        while True:
            number += 1
            length = rng.randint(1, self.max_model_len - 24)
            family = rng.randint(1, 3)
            prompt = [(family * i + i // 7) % VOCAB for i in range(length)]
            prompt[-1:] = [rng.randrange(VOCAB)]
            yield GenerateRequest(
                request_id=str(number),
                prompt_token_ids=prompt,
                params=SamplingParams(
                    n=rng.choice([1, 1, 2, 3]),
                    max_tokens=rng.randint(1, 24),
                    seed=rng.randrange(3),
                    ignore_eos=rng.random() < 0.7,
                ),
                cache_salt=rng.choice(["", "", "", "tenant"]),
                priority=rng.choice([0, 0, 0, 1, -1]),
                deadline_s=rng.choice([None] * 9 + [0.1]),
            )


loads = st.builds(
    Load,
    block_size=st.sampled_from(BLOCK_SIZES),
    num_spare_blocks=st.integers(0, 6),
    num_host_blocks=st.sampled_from([0, 4, 64, 64, 64]),
    enable_prefix_caching=st.sampled_from([True, True, True, False]),
    preset=st.sampled_from(list(Preset)),
    step_share=st.sampled_from([0.02, 0.2, 0.5, 1.0, 2.0]),
    max_num_seqs=st.integers(1, 8),
    is_hopeful=st.booleans(),
    is_overlapping=st.booleans(),
    move_s=st.sampled_from([0.0, 1e-6, 1e-4, 1e-2]),
    seed=st.integers(0, 2**32),
)


def run(load: Load, num_requests: int, counts: Counter[str]) -> None:
    engine = load.engine()
    rng = Random(load.seed)
    requests = load.requests()
    num_taken = 0
    while num_taken < num_requests:
        for _ in range(rng.choice([0, 1, 1, 4])):
            num_taken += engine.add(next(requests))
        for _ in range(rng.randint(1, 6)):
            engine.step()
        if rng.random() < 0.1 and (live := engine.live):
            request_id, index = rng.choice(live)
            engine.abort(request_id, rng.choice([None, index]))
            counts["aborts"] += 1
        engine.check_queue()
    engine.run_until_idle()
    counts["requests"] += num_taken
    counts[f"requests with blocks of {load.block_size}"] += num_taken
    counts["preemptions"] += engine.core.snapshot().num_preemptions
    counts["steps ahead"] += engine.executor.num_steps_ahead
    for kind, number in engine.executor.num_moves.items():
        counts[kind.name] += number
    reasons = Counter(choice.finish_reason for choice in engine.choices.values())
    counts.update({f"ended by {reason}": number for reason, number in reasons.items()})


@pytest.mark.slow
def test_ten_thousand_random_requests_end_once_and_rightly() -> None:
    counts: Counter[str] = Counter()

    @settings(
        max_examples=250,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=[HealthCheck.too_slow],
    )
    @given(load=loads)
    def run_one(load: Load) -> None:
        run(load, 45, counts)

    run_one()
    assert counts["requests"] >= NUM_REQUESTS
    assert all(counts[f"requests with blocks of {size}"] >= 300 for size in BLOCK_SIZES)
    for name in ("preemptions", "steps ahead", *(kind.name for kind in MoveKind)):
        assert counts[name] >= 500, name
    for reason in ("stop", "length", "abort", "error"):
        assert counts[f"ended by {reason}"] >= 100, reason


@dataclass
class _Client:
    """Sends requests from a thread of its own and gives some up, whole or one choice of them."""

    loop: EngineLoop
    requests: list[GenerateRequest]
    taken: list[GenerateRequest]
    rng: Random

    def run(self) -> None:
        for request in self.requests:
            try:
                self.loop.add(request).result(TIMEOUT_S)
            except PageRayError:
                continue
            self.taken.append(request)
            if self.rng.random() < 0.3:
                victim = self.rng.choice(self.taken)
                index = self.rng.choice([None, self.rng.randrange(victim.params.n)])
                self.loop.abort(victim.request_id, index)


@pytest.mark.parametrize(
    ("block_size", "enable_prefix_caching"), [(4, True), (1, True), (8, False)]
)
def test_requests_and_disconnects_from_other_threads_end_once_and_rightly(
    block_size: int, enable_prefix_caching: bool
) -> None:
    load = Load(
        block_size=block_size,
        num_spare_blocks=4,
        num_host_blocks=64,
        enable_prefix_caching=enable_prefix_caching,
        preset=Preset.BALANCED,
        step_share=0.5,
        max_num_seqs=6,
        is_hopeful=True,
        is_overlapping=True,
        move_s=0.0,
        seed=block_size,
    )
    engine = load.engine()
    steps: SimpleQueue[StepOutput] = SimpleQueue()
    failures: list[BaseException] = []

    def on_step(output: StepOutput, _snapshot: EngineSnapshot) -> None:
        steps.put(output)

    loop = EngineLoop(engine.core, on_step=on_step, on_failure=failures.append)
    requests = load.requests()
    clients = [_Client(loop, [next(requests) for _ in range(100)], [], Random(i)) for i in range(3)]
    loop.start()
    threads = [threading.Thread(target=client.run) for client in clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(TIMEOUT_S)
        assert not thread.is_alive()
    assert not failures
    for request in (request for client in clients for request in client.taken):
        engine.expect(request)
    while engine.live:
        engine.receive(steps.get(timeout=TIMEOUT_S).outputs)
    assert loop.stop(TIMEOUT_S)
    assert steps.empty()
    engine.check_ended()
    assert engine.executor.is_shut_down
    assert len(engine.choices) > 150
