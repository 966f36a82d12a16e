"""The simulated cluster: traces, and what becomes of every request."""

import gc
import gzip
import json
import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from cluster.policies import POLICIES
from cluster.simulation.frontend import Outcome
from cluster.simulation.replica import ReplicaModel, StepResult
from cluster.simulation.reports import Reporting
from cluster.simulation.run import Scenario, simulate
from cluster.simulation.shaping import scaled
from cluster.simulation.summary import Objective, summarise
from cluster.simulation.trace import TraceRequest, read_trace
from engine.config import Preset
from engine.errors import InvalidConfig

REPLICA = ReplicaModel(num_blocks=400, block_size=256, preset=Preset.THROUGHPUT)


def conversations(num_requests: int, rate: float, seed: int = 0) -> list[TraceRequest]:
    """Chats of several turns, each turn's prompt the one before and a block or two more."""
    rng = random.Random(seed)
    open_chats: list[list[int]] = []
    requests, now, next_id = [], 0.0, 0
    for number in range(num_requests):
        now += rng.expovariate(rate)
        if len(open_chats) < 40 or rng.random() < 0.3:
            chat = [0]  # the system prompt of all
        else:
            chat = open_chats.pop(rng.randrange(len(open_chats)))
        for _ in range(rng.choice((1, 2, 8))):
            next_id += 1
            chat = [*chat, next_id]
        requests.append(
            TraceRequest(
                number=number,
                arrival_s=now,
                num_input_tokens=512 * len(chat) - rng.randrange(512),
                num_output_tokens=rng.randint(20, 200),
                prefix_ids=tuple(chat),
            )
        )
        if len(chat) < 60:
            open_chats.append(chat)
    return requests


def ends(outcomes: Sequence[Outcome]) -> list[tuple[int, float | None, float | None, str]]:
    return [(o.request.number, o.first_s, o.last_s, o.replica_id) for o in outcomes]


@pytest.mark.parametrize("policy", POLICIES)
def test_every_request_ends_once_and_a_run_can_be_repeated(policy: str) -> None:
    trace = conversations(60, rate=4)
    scenario = Scenario(replicas=[REPLICA] * 3, num_frontends=2, reporting=Reporting(period_s=0.3))
    outcomes = simulate(trace, scenario, POLICIES[policy])
    assert sorted(o.request.number for o in outcomes) == list(range(60))
    for outcome in outcomes:
        assert outcome.first_s is not None
        assert outcome.last_s is not None
        assert outcome.request.arrival_s < outcome.first_s <= outcome.last_s
    assert ends(simulate(trace, scenario, POLICIES[policy])) == ends(outcomes)


def test_only_steps_with_news_have_to_be_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    trace = conversations(60, rate=4)
    scenario = Scenario(replicas=[REPLICA] * 3, num_frontends=2, deaths=[(8.0, 1)])
    outcomes = simulate(trace, scenario, POLICIES["kv"])
    monkeypatch.setattr(StepResult, "has_news", True)
    assert ends(simulate(trace, scenario, POLICIES["kv"])) == ends(outcomes)


def test_a_run_leaves_no_circles_and_the_collector_as_it_was() -> None:
    trace = conversations(20, rate=4)
    scenario = Scenario(replicas=[REPLICA] * 2)
    gc.collect()
    assert gc.isenabled()
    found_during = []
    simulate(trace, scenario, POLICIES["kv"], lambda _: found_during.append(gc.collect()))
    assert gc.isenabled()
    # Whoever runs the test may leave some; each request would leave a few hundred objects.
    assert sum(found_during) < len(trace)


def test_one_request_takes_what_its_steps_take() -> None:
    request = TraceRequest(number=0, arrival_s=1.0, num_input_tokens=3000, num_output_tokens=11)
    model = ReplicaModel(
        num_blocks=100, block_size=256, constant_s=0.01, seq_s=0.001, kv_token_s=0.0
    )
    [outcome] = simulate([request], Scenario(replicas=[model]), POLICIES["kv"])
    assert outcome.first_s is not None
    # Two steps of prefill and ten of decode, there and back over the network.
    assert outcome.first_s == pytest.approx(1 + 0.002 + 2 * 0.01 + 3000 * 0.16e-3)
    assert outcome.last_s == pytest.approx(outcome.first_s + 10 * 0.011)


@pytest.mark.slow
def test_ours_serves_more_conversations_in_time_than_what_others_use() -> None:
    trace = conversations(500, rate=7)
    scenario = Scenario(replicas=[REPLICA] * 6)
    goodput = {
        name: summarise(simulate(trace, scenario, policy), Objective()).goodput
        for name, policy in POLICIES.items()
    }
    others = ("round_robin", "least_requests", "power_of_two", "prefix_hash", "most_free")
    assert goodput["kv"] > max(goodput[name] for name in others)


def test_a_replica_at_half_speed_gets_less_without_being_told() -> None:
    slow = ReplicaModel(num_blocks=400, block_size=256, preset=Preset.THROUGHPUT, speed=0.5)
    outcomes = simulate(
        conversations(150, rate=3), Scenario(replicas=[slow, REPLICA, REPLICA]), POLICIES["kv"]
    )
    shares = [sum(o.replica_id == f"replica-{i}" for o in outcomes) for i in range(3)]
    assert shares[0] < 0.75 * min(shares[1:])


def test_what_a_dying_replica_had_is_served_by_others() -> None:
    trace = conversations(80, rate=5)
    scenario = Scenario(replicas=[REPLICA] * 3, num_frontends=2, deaths=[(8.0, 1)])
    outcomes = simulate(trace, scenario, POLICIES["kv"])
    assert sorted(o.request.number for o in outcomes) == list(range(80))
    moved = [o for o in outcomes if o.num_placements > 1]
    assert moved
    assert all(o.replica_id != "replica-1" for o in moved)
    assert all(o.replica_id != "replica-1" for o in outcomes if o.request.arrival_s > 8)


def test_requests_on_their_way_to_a_dying_replica_are_placed_again() -> None:
    request = TraceRequest(number=0, arrival_s=1.0, num_input_tokens=600, num_output_tokens=3)
    scenario = Scenario(replicas=[REPLICA] * 2, network_s=0.2, deaths=[(1.1, 0), (1.15, 1)])
    [outcome] = simulate([request], scenario, POLICIES["round_robin"])
    assert outcome.has_failed
    for dying in (0, 1):
        scenario = Scenario(replicas=[REPLICA] * 2, network_s=0.2, deaths=[(1.1, dying)])
        [outcome] = simulate([request], scenario, POLICIES["round_robin"])
        assert outcome.replica_id == f"replica-{1 - dying}"
        assert not outcome.has_failed


def test_who_waits_when_the_last_replica_dies_fails_with_it() -> None:
    trace = [
        TraceRequest(number=i, arrival_s=1.0, num_input_tokens=2000, num_output_tokens=200)
        for i in range(6)
    ]
    small = ReplicaModel(num_blocks=10, block_size=256)
    outcomes = simulate(trace, Scenario(replicas=[small], deaths=[(2.0, 0)]), POLICIES["kv"])
    assert [outcome.has_failed for outcome in outcomes] == [True] * 6


def test_what_no_replica_can_hold_fails_and_counts_as_a_miss() -> None:
    small = ReplicaModel(num_blocks=8, block_size=256)
    requests = [
        TraceRequest(number=i, arrival_s=i, num_input_tokens=n, num_output_tokens=2)
        for i, n in enumerate((500, 5000, 600, 700))
    ]
    outcomes = simulate(requests, Scenario(replicas=[small] * 2), POLICIES["kv"])
    summary = summarise(outcomes, Objective())
    assert (summary.num_failed, summary.num_requests, summary.goodput) == (1, 4, 0.75)
    with pytest.raises(InvalidConfig, match="No request of the trace"):
        summarise([o for o in outcomes if o.has_failed], Objective())


def test_prompts_share_as_far_as_their_prefixes_agree() -> None:
    requests = conversations(50, rate=5)
    for left in requests:
        for right in requests[:10]:
            if left is right:
                continue
            pairs = zip(left.prefix_ids, right.prefix_ids, strict=False)
            agree = next((i for i, (a, b) in enumerate(pairs) if a != b), None)
            shortest = min(left.num_input_tokens, right.num_input_tokens)
            num_equal = min(512 * agree if agree is not None else shortest, shortest)
            assert left.prompt()[:num_equal] == right.prompt()[:num_equal]
            if num_equal < shortest:
                assert left.prompt()[num_equal] != right.prompt()[num_equal]


MOONCAKE = "\n".join(
    json.dumps({"timestamp": t, "input_length": 600, "output_length": 5, "hash_ids": [0, t]})
    for t in (2000, 500)
)
AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:17:03.9799600,4808,10
2023-11-16 18:17:05.4799600,110,0
"""
SERVEGEN = "arrival_s,tenant,input_tokens,output_tokens\n7.5,t1,46,1\n9.0,t2,29,2\n"


@pytest.mark.parametrize("is_gzipped", [False, True])
@pytest.mark.parametrize("text", [MOONCAKE, AZURE, SERVEGEN], ids=["mooncake", "azure", "servegen"])
def test_traces_are_read_in_their_formats(text: str, is_gzipped: bool, tmp_path: Path) -> None:
    path = tmp_path / "trace"
    path.write_bytes(gzip.compress(text.encode()) if is_gzipped else text.encode())
    first, second = read_trace(path)
    assert first.arrival_s == 0
    assert second.arrival_s == pytest.approx(1.5)
    assert first.num_input_tokens in (600, 4808, 46)
    assert second.num_output_tokens in (5, 1, 2)
    assert scaled([second], 3)[0].arrival_s == pytest.approx(0.5)
    if text is MOONCAKE:
        assert first.prefix_ids == (0, 500)
    if text is SERVEGEN:
        assert (first.tenant, second.tenant) == ("t1", "t2")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("arrival_s,input_tokens,output_tokens\n", "has no request"),
        ("arrival_s,input_tokens,output_tokens\n1,2,3\n1,x,3\n", "Line 3"),
        ('{"timestamp": 1, "input_length": 5, "output_length": 1}\n{"time', "Line 2"),
        ("what,ever\n1,2\n", "Line 2"),
    ],
)
def test_a_trace_that_cannot_be_read_is_refused_with_the_line(
    text: str, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "trace"
    path.write_text(text)
    with pytest.raises(InvalidConfig, match=message):
        read_trace(path)


def test_a_coarse_clock_is_spread_and_a_fine_one_left_alone(tmp_path: Path) -> None:
    def read(*stamps: int) -> list[float]:
        path = tmp_path / "trace.jsonl"
        rows = [{"timestamp": stamp, "input_length": 9, "output_length": 2} for stamp in stamps]
        path.write_text("\n".join(map(json.dumps, rows)))
        return [request.arrival_s for request in read_trace(path)]

    assert read(0, 0, 0, 3000, 2999, 3001, 6000, 6000, 6000) == pytest.approx(
        [0, 1, 2, 2.999, 3.999, 4.999, 6, 7, 8], abs=0.01
    )
    assert read(0, 10, 20, 20, 30) == [0, 0.01, 0.02, 0.02, 0.03]
    assert read(5, 5, 5) == [0, 0, 0]
