"""The Serve application as it is built from its settings."""

from typing import Any

import pytest
import ray

from deployments.app import build, num_cpus_needed
from deployments.args import AppArgs, ModelArgs
from engine.errors import InvalidConfig


@pytest.fixture(autouse=True)
def no_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "nodes", list)


def built(args: AppArgs) -> tuple[Any, dict[str, Any]]:
    """Arguments of the frontend, and the deployment of each model's replicas."""
    frontend: Any = build(args)._bound_deployment
    frontend_args, replicas = frontend.init_args
    assert frontend_args is args
    return frontend, {name: app._bound_deployment for name, app in replicas.items()}


@pytest.mark.parametrize(("num_gpus", "device"), [(0, "cpu"), (2, "cuda")])
def test_ranks_reserve_what_the_cluster_has(
    num_gpus: int, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 8.0, "GPU": float(num_gpus)})
    _, replicas = built(AppArgs(models=(ModelArgs(tensor_parallel_size=2),)))
    [deployment] = replicas.values()
    assert deployment.init_args[0].device == device
    _, *ranks = deployment._replica_config.placement_group_bundles
    assert [bundle.get("GPU", 0) for bundle in ranks] == [bool(num_gpus)] * 2


@pytest.mark.parametrize(("alive", "strategy"), [(True, "STRICT_PACK"), (False, "PACK")])
def test_a_group_is_kept_on_one_node_where_a_living_one_can_hold_it(
    alive: bool, strategy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = {"Alive": alive, "Resources": {"CPU": 8.0, "GPU": 4.0}, "Labels": {"gpu": "h100"}}
    monkeypatch.setattr(ray, "nodes", lambda: [node])
    model = ModelArgs(
        device="cuda", tensor_parallel_size=4, accelerator_labels={"gpu": "in(h100, h200)"}
    )
    [deployment] = built(AppArgs(models=(model,)))[1].values()
    assert deployment._replica_config.placement_group_strategy == strategy


def test_the_router_places_by_the_policy_that_was_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 8.0})
    for args, policy in ((AppArgs(), "kv"), (AppArgs(router_policy="lmetric"), "lmetric")):
        [deployment] = built(args)[1].values()
        config = deployment._deployment_config
        assert config.request_router_config.request_router_kwargs["policy"] == policy
    with pytest.raises(InvalidConfig, match="no router policy 'best'"):
        AppArgs(router_policy="best")


# What Ray names in its place does nothing in this version.
@pytest.mark.filterwarnings("ignore:The `metrics_interval_s` field:DeprecationWarning")
def test_every_model_has_replicas_of_its_own_behind_one_frontend(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 8.0, "GPU": 8.0})
    labels = {"gpu": "in(h100, h200)"}
    big = ModelArgs(
        model="org/big", tensor_parallel_size=4, replicas_max=2, accelerator_labels=labels
    )
    small = ModelArgs(model="small", device="cpu", block_size=32, enable_prefix_caching=False)
    args = AppArgs(models=(big, small), num_frontends=3, drain_timeout_s=7)
    frontend, replicas = built(args)
    assert frontend.num_replicas == 3
    assert list(replicas) == ["org/big", "small"]
    names = {name: deployment.name for name, deployment in replicas.items()}
    assert names == {"org/big": "Replica-org-big", "small": "Replica-small"}
    for model in args.models:
        deployment = replicas[model.model_name]
        assert deployment.init_args == (
            model.model_copy(update={"device": "cpu" if model is small else "cuda"}),
            args.cache_dir,
            args.trace_export,
        )
        config = deployment._deployment_config
        assert config.graceful_shutdown_timeout_s == 7
        router = config.request_router_config.request_router_kwargs
        assert router["model_name"] == model.model_name
        # Nobody looks for prefixes where none are cached.
        assert router["block_size"] == (None if model is small else model.block_size)
    placements = [deployment._replica_config for deployment in replicas.values()]
    assert [len(each.placement_group_bundles) for each in placements] == [5, 2]
    assert [each.placement_group_bundle_label_selector for each in placements] == [
        [labels] * 5,
        None,
    ]
    assert [each._deployment_config.autoscaling_config is None for each in replicas.values()] == [
        False,
        True,
    ]
    # 2 replicas of 4 ranks, 1 of 1, their supervisors and 3 frontends.
    assert num_cpus_needed(args) == 11
