"""Ray Serve's hook: what it reads of Serve's context and what it answers."""

import logging
import warnings
from collections.abc import Mapping
from typing import Any

import pytest
import ray
from ray.serve._private.common import DeploymentID, ReplicaID, TimeStampedValue
from ray.serve.config import AutoscalingConfig, AutoscalingContext

from cluster.autoscaling.demand import metrics_of
from deployments.app import build
from deployments.args import AppArgs, ModelArgs
from deployments.autoscaling_policy import MAX_REPORT_AGE_S, STATE, KVDemandPolicy
from tests.cluster.token_fakes import make_snapshot

DEPLOYMENT = DeploymentID("Replica", "pageray")


def telling(num_used: int, **more: float) -> dict[str, float]:
    """What a replica of 100 blocks tells."""
    snapshot = make_snapshot(num_blocks=100, num_free_blocks=100 - num_used, num_evictable_blocks=0)
    return metrics_of(snapshot) | more


class Serve:
    """Keeps a policy's state as Serve's controller does, and obeys it."""

    def __init__(self, policy: KVDemandPolicy, target: int, bounds: tuple[int, int]) -> None:
        self.policy = policy
        self.target = self.num_running = target
        self.bounds = bounds
        self.now_s = 1e9
        self.state: dict[str, Any] = {}

    def ask(
        self,
        told: Mapping[str, dict[str, float]],
        *,
        after_s: float = 2.0,
        queued: float = 0.0,
        age_s: float = 0.0,
    ) -> int:
        self.now_s += after_s
        raw: dict[str, dict[ReplicaID, list[TimeStampedValue]]] = {}
        for unique_id, metrics in told.items():
            for name, value in metrics.items():
                series = [TimeStampedValue(self.now_s - age_s - 1, -1.0)]
                series.append(TimeStampedValue(self.now_s - age_s, value))
                raw.setdefault(name, {})[ReplicaID(unique_id, DEPLOYMENT)] = series
        context = AutoscalingContext(
            deployment_id=DEPLOYMENT,
            deployment_name="Replica",
            app_name="pageray",
            current_num_replicas=self.num_running,
            target_num_replicas=self.target,
            running_replicas=[],
            total_num_requests=0,
            total_queued_requests=queued,
            aggregated_metrics=None,
            raw_metrics=lambda: raw,
            capacity_adjusted_min_replicas=self.bounds[0],
            capacity_adjusted_max_replicas=self.bounds[1],
            policy_state=self.state.copy(),
            last_scale_up_time=None,
            last_scale_down_time=None,
            current_time=self.now_s,
            config=None,
        )
        self.target, state = self.policy(context)
        # Serve puts its own counters beside ours.
        self.state = state | {"decision_counter": 0}
        return self.target


def test_the_newest_word_of_each_replica_decides_and_a_change_is_logged_with_its_numbers(
    caplog: pytest.LogCaptureFixture,
) -> None:
    serve = Serve(KVDemandPolicy(), 3, (1, 9))
    calm, busy = ({name: telling(used) for name in "abc"} for used in (70, 90))
    with caplog.at_level(logging.INFO, "ray.serve"):
        assert serve.ask(calm) == 3
        assert serve.ask(busy) == 3
        assert caplog.messages == []
        assert serve.ask(busy) == 4
    [line] = caplog.messages
    assert line.startswith("Replica: replicas 3 -> 4 (demand): wanted 4")
    assert "kv 3.60" in line


def test_between_two_evaluations_the_answer_stays() -> None:
    serve = Serve(KVDemandPolicy(), 3, (1, 9))
    busy = {name: telling(90) for name in "abc"}
    assert serve.ask(busy) == 3
    first = serve.state[STATE].evaluated_s
    for _ in range(7):
        assert serve.ask(busy, after_s=0.25) == 3
    assert serve.state[STATE].evaluated_s == first
    assert serve.ask(busy, after_s=0.25) == 4


@pytest.mark.parametrize("queued", [0.1, 4.0])
def test_a_request_in_a_handles_queue_wakes_a_deployment_at_once(queued: float) -> None:
    serve = Serve(KVDemandPolicy(), 0, (0, 2))
    assert serve.ask({}, after_s=0.25) == 0
    assert serve.ask({}, after_s=0.25, queued=queued) == 1


def test_held_demand_is_what_any_replica_tells_of_all_frontends() -> None:
    serve = Serve(KVDemandPolicy(), 1, (1, 9))
    held = {"num_held_requests": 12.0, "num_held_tokens": 1600.0}
    assert serve.ask({"a": telling(10, **held)}) == 2


def test_an_old_report_is_none() -> None:
    serve = Serve(KVDemandPolicy(low_window_s=1.0, cold_start_s=0.1), 2, (1, 9))
    idle = {"a": telling(0), "b": telling(0)}
    for _ in range(30):
        assert serve.ask(idle, age_s=MAX_REPORT_AGE_S + 1) == 2
    assert serve.ask(idle) == 1


def test_serve_takes_the_settings_and_its_own_delays_do_not_stand_in_the_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ray, "nodes", list)
    model = ModelArgs(
        replicas_min=0, replicas_max=3, scale_to_zero_delay_s=7, scale_down_delay_s=9, device="cpu"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of metrics_interval_s
        frontend: Any = build(AppArgs(models=(model,)))._bound_deployment
    [replicas] = frontend.init_args[1].values()
    config: AutoscalingConfig = replicas._bound_deployment._deployment_config.autoscaling_config
    assert (config.min_replicas, config.initial_replicas, config.max_replicas) == (0, 1, 3)
    assert (config.upscale_delay_s, config.downscale_delay_s) == (0, 0)
    policy = config.policy.get_policy()(**config.policy.policy_kwargs)
    settings = policy._settings
    assert (settings.scale_to_zero_delay_s, settings.low_window_s) == (7, 9)
    assert settings.removal_interval_s == 9
