"""Ray Serve's autoscaling hook, as a thin adapter to `cluster.autoscaling`."""

import logging
import time
from typing import Any

from ray.serve.config import AutoscalingContext

from cluster.autoscaling.demand import ReplicaDemand, ScalingInput
from cluster.autoscaling.history import ScalingState
from cluster.autoscaling.policy import ScalingSettings, decide

logger = logging.getLogger("ray.serve")

MAX_REPORT_AGE_S = 15.0
"""What a replica told longer ago than this, it has not told. Clocks of nodes differ a little."""
STATE = "scaling"


class KVDemandPolicy:
    """Sizes the deployment by the tokens and KV blocks its requests need.

    Serve asks with every turn of its control loop; the answer stays until the next evaluation.
    """

    def __init__(self, **periods: float) -> None:
        """Take fields of ScalingSettings by name."""
        self._settings = ScalingSettings(**periods)

    def __call__(self, context: AutoscalingContext) -> tuple[int, dict[str, Any]]:
        """Return the wanted number of replicas and the state for the next call."""
        now_s = time.time() if context.current_time is None else context.current_time
        state: ScalingState | None = (context.policy_state or {}).get(STATE)
        target = context.target_num_replicas
        if state is not None and target > 0:
            age_s = now_s - state.evaluated_s
            if 0 <= age_s < self._settings.evaluation_period_s:
                return target, {STATE: state}
        given = ScalingInput(
            now_s=now_s,
            replicas=_newest(context, now_s),
            num_serving=context.current_num_replicas,
            num_target=target,
            min_replicas=context.capacity_adjusted_min_replicas,
            max_replicas=context.capacity_adjusted_max_replicas,
            num_queued_requests=context.total_queued_requests,
        )
        decision, state = decide(given, self._settings, state)
        if decision.changes:
            logger.info("%s: %s", context.deployment_name, decision)
        return decision.num_target, {STATE: state}


def _newest(context: AutoscalingContext, now_s: float) -> dict[str, ReplicaDemand]:
    """What each replica told last; Serve's own averages would blur counters."""
    told: dict[str, dict[str, float]] = {}
    for name, of_replica in (context.raw_metrics or {}).items():
        for replica_id, series in of_replica.items():
            if series and now_s - series[-1].timestamp <= MAX_REPORT_AGE_S:
                told.setdefault(replica_id.unique_id, {})[name] = series[-1].value
    return {key: ReplicaDemand.from_metrics(metrics) for key, metrics in told.items()}
