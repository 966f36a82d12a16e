"""The Serve application as it is built from its settings."""

from typing import Any

import pytest
import ray

from deployments.app import build
from deployments.args import AppArgs
from engine.errors import InvalidConfig


@pytest.mark.parametrize(("num_gpus", "device"), [(0, "cpu"), (2, "cuda")])
def test_ranks_reserve_what_the_cluster_has(
    num_gpus: int, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 8.0, "GPU": float(num_gpus)})
    frontend: Any = build(AppArgs(tensor_parallel_size=2))._bound_deployment
    args, replicas = frontend.init_args
    deployment = replicas._bound_deployment
    assert args.device == deployment.init_args[0].device == device
    _, *ranks = deployment._replica_config.placement_group_bundles
    assert [bundle.get("GPU", 0) for bundle in ranks] == [bool(num_gpus)] * 2


def test_the_router_places_by_the_policy_that_was_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 8.0})
    for args, policy in ((AppArgs(), "kv"), (AppArgs(router_policy="lmetric"), "lmetric")):
        frontend: Any = build(args)._bound_deployment
        config = frontend.init_args[1]._bound_deployment._deployment_config
        assert config.request_router_config.request_router_kwargs["policy"] == policy
    with pytest.raises(InvalidConfig, match="no router policy 'best'"):
        AppArgs(router_policy="best")
