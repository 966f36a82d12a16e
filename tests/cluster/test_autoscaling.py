"""When replicas are added and when they go, rule by rule."""

from collections.abc import Mapping
from dataclasses import asdict, replace

import pytest

from cluster.autoscaling.decision import Reason
from cluster.autoscaling.demand import ReplicaDemand, metrics_of
from engine.snapshot import EngineSnapshot
from tests.cluster.scaling_fakes import SETTINGS, WINDOW_S, Deployment, demand

STEP_TIME: Mapping[str, float] = {"constant_s": 0.01, "seq_s": 0.001, "prefill_token_s": 0.001}


def test_demand_is_used_blocks_and_those_that_queued_prompts_will_take() -> None:
    queued = demand(10, num_waiting=2, num_queued_prefill_tokens=33)
    assert queued.num_needed_blocks == 10 + 3 + 2


def test_a_snapshot_survives_the_way_as_numbers() -> None:
    snapshot = EngineSnapshot(
        epoch="e",
        sequence=1,
        block_size=16,
        num_blocks=100,
        num_free_blocks=20,
        num_evictable_blocks=30,
        num_waiting=3,
        num_running=4,
        num_queued_prefill_tokens=50,
        step_time_s=(0.1, 0.2, 0.3),
        num_prompt_tokens=900,
        num_cache_hit_tokens=200,
        num_generated_tokens=70,
        max_num_seqs=8,
    )
    metrics = metrics_of(snapshot, cold_start_s=5.0)
    assert all(isinstance(value, float) for value in metrics.values())
    told = ReplicaDemand.from_metrics({**metrics, "ongoing_requests": 5})
    assert told == ReplicaDemand(
        block_size=16,
        num_blocks=100,
        num_used_blocks=50,
        num_waiting=3,
        num_running=4,
        num_queued_prefill_tokens=50,
        num_prefilled_tokens=700,
        num_generated_tokens=70,
        max_num_seqs=8,
        constant_s=0.1,
        seq_s=0.2,
        prefill_token_s=0.3,
        cold_start_s=5.0,
    )
    assert ReplicaDemand.from_metrics(asdict(told)) == told


def test_blocks_that_requests_need_add_replicas() -> None:
    # Prefixes in the cache that nobody uses count as empty.
    for used, num_replicas in ((75, 1), (76, 2), (0, 1)):
        assert Deployment().alike(demand(used), seconds=4) == num_replicas


def test_requests_that_frontends_hold_count_once_though_every_replica_tells_of_them() -> None:
    held = demand(30, num_held_requests=10, num_held_tokens=1600)
    deployment = Deployment(2)
    deployment.decide(held, held)
    [decision] = deployment.decisions
    assert decision.num_held_requests == 10
    assert decision.load.num_needed_blocks == 60 + 100 + 10


def test_a_backlog_of_prompts_is_to_be_worked_off_in_time() -> None:
    # 1000 tokens per second and replica: 41,000 tokens take 41 s on one.
    backlog = demand(num_blocks=1e6, num_queued_prefill_tokens=41_000, **STEP_TIME)
    deployment = Deployment()
    assert deployment.decide(backlog) == 3
    assert deployment.reason() is Reason.PANIC
    assert deployment.decisions[-1].load.prefill == pytest.approx(2.05)


def test_prompts_that_keep_coming_need_the_rate_at_which_they_are_computed() -> None:
    deployment = Deployment()
    for i in range(60):
        done = demand(10, num_blocks=1e6, num_prefilled_tokens=2400.0 * i, **STEP_TIME)
        deployment.decide(done, *[demand(1)] * (deployment.num_serving - 1))
    # 1200 tokens/s; a replica is to get 800.
    assert deployment.num_target == 2
    assert deployment.decisions[-1].load.prefill == pytest.approx(1.5, rel=0.01)


def test_output_needs_the_rate_at_which_a_batch_still_decodes_in_time() -> None:
    deployment = Deployment()
    for i in range(60):
        counted = {"num_generated_tokens": 1500.0 * i, "max_num_seqs": 256.0}
        done = demand(10, num_blocks=1e6, **counted, **STEP_TIME)
        deployment.decide(done, *[demand(1)] * (deployment.num_serving - 1))
    # In 0.1 s a step decodes 90 sequences, so a replica 900 tokens/s.
    assert deployment.decisions[-1].load.decode == pytest.approx(750 / (0.8 * 900), rel=0.01)
    assert deployment.num_target == 2


def test_a_lull_is_remembered_by_the_slow_average() -> None:
    deployment = Deployment(2)
    for i in range(60):
        done = demand(10, num_blocks=1e6, num_prefilled_tokens=2400.0 * i, **STEP_TIME)
        deployment.decide(done, demand(1))
    busy = deployment.decisions[-1].prefill_tokens_per_s
    done = demand(10, num_blocks=1e6, num_prefilled_tokens=2400.0 * 59, **STEP_TIME)
    for _ in range(10):
        deployment.decide(done, demand(1))
    assert 0.5 * busy < deployment.decisions[-1].prefill_tokens_per_s < busy


def test_counters_of_a_replica_that_is_new_or_gone_are_no_rate() -> None:
    deployment = Deployment(2)
    for demands in (
        [demand(10)],
        [demand(10), demand(10, num_prefilled_tokens=1e9)],
        [demand(10)],
        [demand(10, num_prefilled_tokens=0), demand(10, num_prefilled_tokens=5)],
    ):
        deployment.decide(*demands)
    assert deployment.decisions[-1].prefill_tokens_per_s == 0


def test_more_sequences_than_replicas_may_run_at_once_add_replicas() -> None:
    deployment = Deployment()
    full = demand(20, num_running=8, num_waiting=12, max_num_seqs=8)
    assert deployment.decide(full) == 3


def test_a_single_high_moment_adds_nothing() -> None:
    deployment = Deployment(3)
    for _ in range(20):
        assert deployment.decide(*[demand(80)] * 3) == 3
        assert deployment.reason() is Reason.UNCONFIRMED
        assert deployment.decide(*[demand(30)] * 3) == 3
    deployment.decide(*[demand(80)] * 3)
    assert deployment.decide(*[demand(80)] * 3) == 4
    assert deployment.reason() is Reason.DEMAND


def test_much_higher_demand_is_not_waited_for() -> None:
    deployment = Deployment(4)
    assert deployment.decide(*[demand(100, num_queued_prefill_tokens=160)] * 4) == 4
    deployment = Deployment(4)
    assert deployment.decide(*[demand(100, num_queued_prefill_tokens=320)] * 4) == 6
    assert deployment.reason() is Reason.PANIC


def test_no_step_is_larger_than_half_or_two() -> None:
    flood = demand(100, num_queued_prefill_tokens=160_000)
    steps = [1, 3, 5, 7, 10, 15, 22, 33]
    deployment = Deployment(bounds=(1, 1000))
    assert [deployment.num_target, *(deployment.decide(flood) for _ in steps[1:])] == steps


def test_starting_replicas_are_not_ordered_twice() -> None:
    deployment = Deployment()
    for _ in range(200):
        assert deployment.decide(demand(100, num_queued_prefill_tokens=1600)) == 3
        deployment.num_serving = 1


def test_late_first_tokens_add_a_replica_and_then_wait_for_what_it_does() -> None:
    deployment = Deployment(3)
    late = demand(50, ttft_attainment=0.9)
    assert deployment.alike(late, seconds=62) == 3
    assert deployment.reason() is Reason.UNCONFIRMED
    assert deployment.decide(*[late] * 3) == 4
    assert deployment.reason() is Reason.LATE_TOKENS
    assert deployment.alike(demand(45, ttft_attainment=0.9), seconds=58) == 4
    assert deployment.alike(demand(45, ttft_attainment=0.9), seconds=6) == 5


def test_what_late_first_tokens_brought_stays_for_as_long_as_the_load_does() -> None:
    deployment = Deployment(3)
    deployment.alike(demand(50, ttft_attainment=0.9), seconds=64)
    assert deployment.num_target == 4
    # The same demand, on one replica more.
    assert deployment.alike(demand(37.5), seconds=3000) == 4
    assert deployment.reason() is Reason.LATE_TOKENS
    assert deployment.alike(demand(25), seconds=2 * WINDOW_S) < 4


def test_a_tenth_more_come_for_late_first_tokens() -> None:
    deployment = Deployment(30, bounds=(1, 99))
    deployment.alike(demand(70, ttft_attainment=0.5), seconds=64)
    assert deployment.num_target == 33


def test_first_tokens_that_come_late_on_idle_replicas_add_none() -> None:
    assert Deployment(2).alike(demand(10, ttft_attainment=0.0), seconds=200) == 2


def test_bounds_hold_whatever_the_demand() -> None:
    flood = demand(100, num_queued_prefill_tokens=9999)
    deployment = Deployment(2, bounds=(1, 2))
    assert deployment.decide(flood, flood) == 2
    assert deployment.reason() is Reason.AT_MOST
    for before, after in ((1, 3), (9, 5)):
        deployment = Deployment(before, bounds=(3, 5))
        assert deployment.decide(*[demand(1)] * before) == after
        assert deployment.reason() is Reason.BOUNDS


def test_replica_goes_only_after_a_sustained_low_and_one_at_a_time() -> None:
    deployment = Deployment(4)
    assert deployment.alike(demand(5), seconds=WINDOW_S) == 4
    assert deployment.reason() is Reason.YOUNG
    assert deployment.alike(demand(5), seconds=2) == 3
    assert deployment.reason() is Reason.REMOVAL
    assert deployment.alike(demand(5), seconds=28) == 3
    assert deployment.reason() is Reason.RECENT_REMOVAL
    assert deployment.alike(demand(5), seconds=2) == 2
    assert deployment.alike(demand(5), seconds=30) == 1
    assert deployment.alike(demand(5), seconds=1000) == 1


def test_a_high_moment_starts_the_low_window_again() -> None:
    deployment = Deployment(2)
    deployment.alike(demand(5), seconds=WINDOW_S - 2)
    deployment.decide(demand(70), demand(70))
    assert deployment.alike(demand(5), seconds=WINDOW_S) == 2
    assert deployment.reason() is Reason.RECENT_PEAK
    assert deployment.alike(demand(5), seconds=2) == 1


def test_as_many_stay_as_the_busiest_moment_of_the_window_needed() -> None:
    deployment = Deployment(5)
    deployment.alike(demand(5), seconds=WINDOW_S)
    deployment.decide(*[demand(30)] * 5)
    deployment.alike(demand(5), seconds=WINDOW_S - 10)
    assert deployment.num_target == 2


def test_a_cold_start_that_takes_long_makes_the_window_longer() -> None:
    deployment = Deployment(2)
    slow = demand(5, cold_start_s=200.0)
    assert deployment.alike(slow, seconds=600) == 2
    assert deployment.alike(slow, seconds=2) == 1


def test_a_replica_of_many_is_not_worth_a_removal() -> None:
    deployment = Deployment(20, bounds=(1, 30))
    assert deployment.alike(demand(70), seconds=WINDOW_S + 100) == 20
    assert deployment.reason() is Reason.DEAD_BAND
    assert deployment.alike(demand(50), seconds=WINDOW_S + 100) < 20


def test_removal_is_judged_by_what_the_others_would_then_carry() -> None:
    deployment = Deployment(2)
    # One replica would be at 70 %: below the share for adding, too much for removing.
    assert deployment.alike(demand(35), seconds=WINDOW_S + 100) == 2
    assert deployment.reason() is Reason.KV


@pytest.mark.parametrize(("rise", "num_left"), [(0.29, 4), (0.0, 3)])
def test_a_rising_trend_keeps_what_it_will_need(rise: float, num_left: int) -> None:
    deployment = Deployment(4, settings=replace(SETTINGS, cold_start_s=90.0))
    deployment.alike(demand(65), seconds=WINDOW_S)
    # At the end 3 replicas would have 59 % in use either way.
    for i in range(152, 0, -1):
        deployment.decide(*[demand(44.5 - rise * i)] * 4)
    assert deployment.num_target == num_left
    refused = [one for one in deployment.decisions if one.reason is Reason.FORECAST]
    assert bool(refused) == bool(rise)


def test_missing_reports_are_not_idleness() -> None:
    deployment = Deployment(3)
    for _ in range(400):
        assert deployment.decide(demand(1)) == 3
    assert deployment.reason() is Reason.UNREPORTED
    deployment = Deployment(1, bounds=(0, 3))
    for _ in range(400):
        assert deployment.decide() == 1


def test_nothing_is_removed_before_a_window_is_known() -> None:
    # As after a restart of Serve's controller, which forgets.
    deployment = Deployment(3)
    deployment.alike(demand(1), seconds=WINDOW_S)
    deployment.state = None
    assert deployment.alike(demand(1), seconds=WINDOW_S) == 3


def test_clock_that_steps_back_does_not_remove_replicas() -> None:
    deployment = Deployment(2)
    deployment.alike(demand(1), seconds=WINDOW_S)
    deployment.decide(demand(1), demand(1), after_s=-500)
    assert deployment.alike(demand(1), seconds=WINDOW_S - 2) == 2


def test_a_decision_is_one_line_with_its_numbers() -> None:
    deployment = Deployment()
    deployment.decide(demand(100, num_held_requests=3, num_held_tokens=160, cold_start_s=7))
    line = str(deployment.decisions[-1])
    assert "\n" not in line
    for part in ("replicas 1 -> 2 (panic)", "wanted 2", "kv 1.51", "held 3", "cold start 7 s"):
        assert part in line
    assert deployment.decisions[-1].changes
