"""`pageray simulate` on a small trace."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cluster.policies import POLICIES
from deployments.cli import app
from engine.errors import InvalidConfig


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    rows = (f"{i / 2},t{i % 3},{50 + 7 * i},{1 + i % 9}" for i in range(20))
    path = tmp_path / "trace.csv"
    path.write_text("\n".join(["arrival_s,tenant,input_tokens,output_tokens", *rows]))
    return path


def test_all_policies_as_json(trace: Path) -> None:
    result = CliRunner().invoke(
        app, ["simulate", str(trace), "--replicas", "2", "--policy", "all", "--json"]
    )
    policies = json.loads(result.stdout)["policies"]
    assert list(policies) == list(POLICIES)
    for summary in policies.values():
        assert summary["num_requests"] == 20
        assert summary["goodput"] == 1
        assert 0 < summary["ttft_s"]["p50"] <= summary["ttft_s"]["p99"] < 1
        assert 0 < summary["tpot_s"]["mean"] < 0.08
        assert summary["replica_s"] == pytest.approx(2 * 9.7, abs=1.5)
        assert summary["num_direction_changes"] == 0


def test_table_of_one_policy_on_a_part_of_the_trace(trace: Path) -> None:
    result = CliRunner().invoke(app, ["simulate", str(trace), "--seconds", "3", "--slow", "0"])
    assert "kv" in result.stdout
    assert "100.0%" in result.stdout
    assert "lmetric" not in result.stdout


def test_replicas_that_follow_the_demand(tmp_path: Path) -> None:
    # Blocks for one request at a time: a crowd comes, and long after it a single one.
    rows = [f"{i / 10},t,1000,100" for i in range(60)] + ["900,t,1000,100"]
    path = tmp_path / "trace.csv"
    path.write_text("\n".join(["arrival_s,tenant,input_tokens,output_tokens", *rows]))
    options = ["--replicas", "0:4", "--cold-start", "5", "--num-blocks", "80", "--json"]
    result = CliRunner().invoke(app, ["simulate", str(path), *options])
    summary = json.loads(result.stdout)["policies"]["kv"]
    assert summary["num_failed"] == 0
    assert summary["num_direction_changes"] == 2
    assert 300 < summary["replica_s"] < 4 * 450
    table = CliRunner().invoke(app, ["simulate", str(path), *options[:-1]]).stdout
    assert "turns" in table
    assert f"{summary['replica_s']:.0f}" in table


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--policy", "best"], "no policy 'best'"),
        (["--replicas", "0"], "0 to 0 replicas"),
        (["--replicas", "3:2"], "3 to 2 replicas"),
        (["--replicas", "few"], "no number of replicas"),
        (["--replicas", "1:2", "--cold-start", "0"], "cold start is 0"),
        (["--frontends", "0"], "0 frontends"),
        (["--slow", "12"], "no replica 12"),
        (["--rate", "0"], "rate is 0"),
        (["--seeds", "0"], "0 seeds"),
        (["--copies", "0"], "0 copies"),
        (["--burst", "1:2"], "burst is '1:2'"),
        (["--burst", "1:2:0"], "factor of the burst is 0"),
        (["--death", "x:1"], "death is 'x:1'"),
        (["--death", "1:12"], "no replica 12"),
        (["--flood", "1"], "flood is 1"),
        (["--lost-reports", "-0.1"], "lost-reports is -0.1"),
        (["--seconds", "0"], "No request is left"),
        (["--preset", "fast"], "preset is 'fast'"),
        (["--block-size", "24"], "block size is 24"),
    ],
)
def test_what_cannot_be_is_refused(options: list[str], message: str, trace: Path) -> None:
    result = CliRunner().invoke(app, ["simulate", str(trace), *options])
    assert isinstance(result.exception, InvalidConfig)
    assert message in result.exception.cause


def test_several_seeds_give_a_mean_with_its_interval(trace: Path) -> None:
    options = ["--replicas", "2", "--seconds", "5", "--seeds", "3", "--ttft", "0.03"]
    result = CliRunner().invoke(app, ["simulate", str(trace), *options, "--json"])
    summary = json.loads(result.stdout)["policies"]["kv"]
    assert summary["num_runs"] == 3
    assert 0 < summary["goodput"] < 1
    assert summary["goodput_half_interval"] > 0
    assert "±" in CliRunner().invoke(app, ["simulate", str(trace), *options]).stdout


def test_a_flood_a_burst_and_a_death_are_survived_and_tenants_told_apart(trace: Path) -> None:
    options = ["--replicas", "2", "--flood", "0.5", "--burst", "2:1:3", "--death", "4:1"]
    options += ["--lost-reports", "0.2", "--late-reports", "0.2", "--report-period", "0.1"]
    result = CliRunner().invoke(app, ["simulate", str(trace), *options, "--json"])
    summary = json.loads(result.stdout)["policies"]["kv"]
    assert (summary["num_requests"], summary["num_failed"]) == (40, 0)
    assert set(summary["tenant_ttft_s"]) == {"t0", "t1", "t2", "flood"}
