"""What holds for the autoscaler whatever happens: bounds, steps, and rest under constant load."""

import math
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.autoscaling.demand import ReplicaDemand, ScalingInput
from cluster.autoscaling.history import ScalingState
from cluster.autoscaling.policy import ScalingSettings, decide

SHORT = ScalingSettings(
    low_window_s=20.0, removal_interval_s=4.0, scale_to_zero_delay_s=30.0, cold_start_s=4.0
)
# In this window the averages forget what came before.
CALM = ScalingSettings(low_window_s=120.0, removal_interval_s=4.0, cold_start_s=4.0)
NUMBERS = st.floats(0, 1e6, allow_nan=False)
DEMANDS = st.builds(
    ReplicaDemand,
    block_size=st.sampled_from((0.0, 1.0, 16.0)),
    num_blocks=st.sampled_from((0.0, 1.0, 1000.0)),
    num_used_blocks=NUMBERS,
    num_waiting=NUMBERS,
    num_running=NUMBERS,
    num_queued_prefill_tokens=NUMBERS,
    num_prefilled_tokens=NUMBERS,
    num_generated_tokens=NUMBERS,
    max_num_seqs=st.sampled_from((0.0, 1.0, 256.0)),
    constant_s=st.sampled_from((0.0, 1e-6, 0.01, 9.0)),
    seq_s=st.sampled_from((0.0, 1e-6, 0.01, 9.0)),
    prefill_token_s=st.sampled_from((0.0, 1e-6, 0.01, 9.0)),
    cold_start_s=st.sampled_from((0.0, 3.0, 1e4)),
    num_held_requests=NUMBERS,
    num_held_tokens=NUMBERS,
    ttft_attainment=st.floats(0, 1),
)
LOOKS = st.tuples(
    st.lists(DEMANDS, max_size=4),
    st.floats(-5, 60),
    st.integers(0, 6),
    st.sampled_from((0.0, 0.1, 7.0)),
)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(LOOKS, min_size=1, max_size=30),
    st.integers(0, 4),
    st.integers(0, 8),
    st.integers(0, 9),
)
def test_whatever_is_told_bounds_and_steps_hold(
    looks: list[tuple[list[ReplicaDemand], float, int, float]], least: int, more: int, start: int
) -> None:
    most = max(1, least + more)
    target, now_s, state = start, 1000.0, None
    for demands, after_s, num_serving, queued in looks:
        now_s += after_s
        asked = ScalingInput(
            now_s=now_s,
            replicas={str(i): demand for i, demand in enumerate(demands)},
            num_serving=num_serving,
            num_target=target,
            min_replicas=least,
            max_replicas=most,
            num_queued_requests=queued,
        )
        decision, state = decide(asked, SHORT, state)
        assert least <= decision.num_target <= most
        if least <= target <= most:
            assert -1 <= decision.num_target - target <= max(2, target // 2)
        if decision.num_target == 0 and target:
            assert (target, least, decision.num_held_requests) == (1, 0, 0) or target > most
        assert str(decision)
        target = decision.num_target


@settings(max_examples=60, deadline=None)
@given(
    blocks=st.floats(0, 900),
    prefill_per_s=st.floats(0, 5000),
    decode_per_s=st.floats(0, 5000),
    start=st.integers(1, 10),
    cold_start_looks=st.integers(0, 5),
)
def test_constant_load_is_scaled_to_once_and_never_away_from(
    blocks: float, prefill_per_s: float, decode_per_s: float, start: int, cold_start_looks: int
) -> None:
    serving = target = start
    state: ScalingState | None = None
    counts: list[int] = []
    ready_at: dict[int, int] = {}
    told = {f"first-{i}": ReplicaDemand() for i in range(start)}
    for look in range(250):
        for i in range(ready_at.pop(look, 0)):
            told[f"{look}-{i}"] = ReplicaDemand()
        serving = len(told)
        told = {
            replica_id: ReplicaDemand(
                block_size=16,
                num_blocks=100,
                num_used_blocks=blocks / serving,
                num_running=1,
                num_prefilled_tokens=before.num_prefilled_tokens + 2 * prefill_per_s / serving,
                num_generated_tokens=before.num_generated_tokens + 2 * decode_per_s / serving,
                max_num_seqs=64,
                constant_s=0.01,
                seq_s=0.001,
                prefill_token_s=0.001,
                cold_start_s=2.0 * cold_start_looks,
            )
            for replica_id, before in told.items()
        }
        asked = ScalingInput(
            now_s=2.0 * look,
            replicas=told,
            num_serving=serving,
            num_target=target,
            min_replicas=1,
            max_replicas=10,
        )
        decision, state = decide(asked, CALM, state)
        if decision.num_target > target:
            ready_at[look + 1 + cold_start_looks] = decision.num_target - target
        elif decision.num_target < target:
            told.popitem()
        target = decision.num_target
        counts.append(target)
    directions = {math.copysign(1, b - a) for a, b in pairwise(counts) if a != b}
    assert len(directions) <= 1
    assert len(set(counts[-40:])) == 1
