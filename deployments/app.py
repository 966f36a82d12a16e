"""Builds the Serve application; `deployments.app:build` is the import path in config files."""

import math
from typing import Any

import ray
from ray.serve import Application

from cluster.group_strategy import Node, group_strategy
from deployments.args import AppArgs, ModelArgs
from deployments.frontend import FrontendDeployment
from deployments.replica import ReplicaDeployment
from deployments.serve_environment import LONGEST_STREAM_S

SUPERVISOR_CPUS = 0.1
FRONTEND_CPUS = 0.5
REMOVAL_INTERVAL_S = 30.0
NO_LIMIT = 1_000_000
"""Serve's request limits do not know of KV blocks; admission is the engine's."""


def build(args: AppArgs) -> Application:
    """Frontends in front of the replicas of every model."""
    return FrontendDeployment.options(
        ray_actor_options={"num_cpus": FRONTEND_CPUS},
        num_replicas=args.num_frontends,
        # New ones are there before old ones close: they take half a CPU, and no accelerator.
        max_surge_percent=100,
        max_ongoing_requests=NO_LIMIT,
        health_check_period_s=1,
        health_check_timeout_s=5,
        # Streams cannot move from one frontend to another, as they do among replicas.
        graceful_shutdown_timeout_s=LONGEST_STREAM_S,
        graceful_shutdown_wait_loop_s=0.2,
    ).bind(args, {model.model_name: _replicas(model, args) for model in args.models})


def _replicas(args: ModelArgs, app: AppArgs) -> Application:
    """Replicas of one model, each one tensor-parallel group."""
    # Settled here once: a replica that starts later may see another cluster.
    args = args.model_copy(update={"device": args.device_kind()})
    rank = {"CPU": 1.0, "GPU": 1.0} if args.device == "cuda" else {"CPU": 1.0}
    # One for all bundles: the supervisor stays beside its ranks.
    labels = args.accelerator_labels
    selector: Any = {"placement_group_bundle_label_selector": [labels]} if labels else {}
    bundles = [{"CPU": SUPERVISOR_CPUS}] + [rank] * args.tensor_parallel_size
    scales = args.replicas_min < args.replicas_max
    return ReplicaDeployment.options(
        name=args.deployment_name,
        ray_actor_options={"num_cpus": SUPERVISOR_CPUS},
        placement_group_bundles=bundles,
        placement_group_strategy=group_strategy(bundles, labels, _nodes()),
        **selector,
        max_ongoing_requests=NO_LIMIT,
        health_check_period_s=1,
        health_check_timeout_s=5,
        graceful_shutdown_timeout_s=app.drain_timeout_s,
        graceful_shutdown_wait_loop_s=0.2,
        request_router_config={
            "request_router_class": "deployments.request_router:KVBlockRouter",
            "request_router_kwargs": {
                "model_name": args.model_name,
                "block_size": args.cached_block_size,
                "policy": app.router_policy,
            },
            "max_backoff_s": 0.05,
        },
        num_replicas=None if scales else args.replicas_min,
        autoscaling_config=_autoscaling(args) if scales else None,
    ).bind(args, app.cache_dir, app.trace_export)


def _nodes() -> list[Node]:
    return [
        Node(resources=node["Resources"], labels=node["Labels"])
        for node in ray.nodes()
        if node["Alive"]
    ]


def _autoscaling(args: ModelArgs) -> dict[str, Any]:
    return {
        "min_replicas": args.replicas_min,
        # Somebody waits for the start to see that it works.
        "initial_replicas": max(1, args.replicas_min),
        "max_replicas": args.replicas_max,
        "metrics_interval_s": 1,
        "look_back_period_s": 2,
        # The policy waits by itself, for as long as it finds right.
        "upscale_delay_s": 0,
        "downscale_delay_s": 0,
        "policy": {
            "policy_function": "deployments.autoscaling_policy:KVDemandPolicy",
            "policy_kwargs": {
                "low_window_s": args.scale_down_delay_s,
                "removal_interval_s": min(REMOVAL_INTERVAL_S, args.scale_down_delay_s),
                "scale_to_zero_delay_s": args.scale_to_zero_delay_s,
            },
        },
    }


def num_cpus_needed(args: AppArgs) -> int:
    """CPU tokens that the application takes of Ray when every replica is up."""
    ranks = sum(
        model.replicas_max * (model.tensor_parallel_size + SUPERVISOR_CPUS) for model in args.models
    )
    return math.ceil(ranks + args.num_frontends * FRONTEND_CPUS)
