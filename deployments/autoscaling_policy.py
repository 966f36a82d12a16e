"""Ray Serve's autoscaling hook, as a thin adapter to `cluster.autoscaling`."""

import time
from typing import Any

from ray.serve.config import AutoscalingContext

from cluster.autoscaling import ReplicaDemand, desired_replicas


class KVDemandPolicy:
    """Sizes the deployment by the KV blocks its requests need."""

    def __call__(self, context: AutoscalingContext) -> tuple[int, dict[str, Any]]:
        """Return the wanted number of replicas and the state for the next call."""
        metrics = context.aggregated_metrics or {}
        replica_ids = {replica_id for values in metrics.values() for replica_id in values}
        demands = [
            ReplicaDemand.from_metrics(
                {
                    name: values[replica_id]
                    for name, values in metrics.items()
                    if replica_id in values
                }
            )
            for replica_id in replica_ids
        ]
        return desired_replicas(
            demands,
            num_replicas=context.target_num_replicas,
            min_replicas=context.capacity_adjusted_min_replicas,
            max_replicas=context.capacity_adjusted_max_replicas,
            num_queued_requests=int(context.total_queued_requests),
            now_s=time.time() if context.current_time is None else context.current_time,
            state=context.policy_state or {},
        )
