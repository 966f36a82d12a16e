"""Short chaos runs: ranks, supervisors and nodes die and hang, and no client sees it."""

import asyncio
from pathlib import Path

import pytest

from tests.chaos.hosts_cluster import HostsCluster
from tests.chaos.local_cluster import LocalCluster
from tests.chaos.loopback_hosts import LoopbackHosts
from tests.chaos.run import ChaosRun, Plan
from tests.chaos.schedule import FaultKind
from tests.chaos.tally import Fate

pytestmark = [pytest.mark.ray, pytest.mark.slow]

PLAN = Plan(
    seed=8,
    max_faults=3,
    num_distinct=12,
    num_clients=10,
    kinds=(FaultKind.KILL_RANK, FaultKind.KILL_REPLICA, FaultKind.STOP_RANK),
)


def test_no_client_sees_that_ranks_and_replicas_die_and_hang(
    chaos_model: Path, tmp_path: Path
) -> None:
    told: list[str] = []
    with LocalCluster(chaos_model, tmp_path / "log") as cluster:
        tally = asyncio.run(ChaosRun(cluster, PLAN, told.append).run())
    story = "\n".join([*told, tally.line()])
    assert tally.is_clean, story
    assert {blow.kind for blow in tally.blows} == set(PLAN.kinds or ()), story
    assert tally.fates[Fate.EXCUSED] == 0, story
    assert any((outcome.num_attempts or 1) > 1 for outcome in tally.outcomes), story


@pytest.mark.long
def test_streams_go_on_when_a_node_loses_its_raylet(chaos_model: Path) -> None:
    told: list[str] = []
    kinds = [FaultKind.KILL_RAYLET]
    plan = Plan(seed=8, max_faults=1, num_distinct=12, num_clients=24, kinds=kinds)
    with HostsCluster(chaos_model, make_hosts=LoopbackHosts) as cluster:
        tally = asyncio.run(ChaosRun(cluster, plan, told.append).run())
    story = "\n".join([*told, tally.line()])
    assert tally.is_clean, story
    [blow] = tally.blows
    seen_through = [
        outcome
        for outcome in tally.outcomes
        if outcome.answer.started_s < blow.struck_s < outcome.answer.ended_s
        and tally.fate(outcome) is Fate.OK
    ]
    assert seen_through, story
