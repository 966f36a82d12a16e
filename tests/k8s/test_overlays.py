"""Every overlay is what Kubernetes, KubeRay's operator, Ray Serve and PageRay take."""

from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from deployments.cli import app
from deployments.serve_environment import serve_environment
from tests.k8s import object_schema, operator_rules, serving_rules
from tests.k8s.render import (
    BATCH,
    CLUSTER,
    K8S,
    OVERLAYS,
    Object,
    cluster_of,
    groups,
    kustomize,
    owner,
    pods,
    ray_service,
    render,
)

pytestmark = pytest.mark.skipif(
    kustomize() is None, reason="renders with kustomize or kubectl, and neither is here"
)

GRADUAL = "../../tests/k8s/gradual"
RAY_PORTS = {6379, 8265, 10001, 52365}


@pytest.fixture(params=[*OVERLAYS, BATCH])
def overlay(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def test_every_object_is_one_of_its_kind(overlay: str) -> None:
    for item in render(overlay):
        assert object_schema.problems_of(item) == [], item["kind"]


def test_the_operator_takes_it(overlay: str) -> None:
    assert operator_rules.problems_of(owner(overlay)) == []


def test_what_is_served_fits_its_pods(overlay: str) -> None:
    assert serving_rules.problems_of(owner(overlay)) == []


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_serve_config_is_what_pageray_config_writes(overlay: str) -> None:
    folder = K8S / "overlays" / overlay
    written = CliRunner().invoke(app, ["config", "--config", str(folder / "options.yaml")])
    assert written.exit_code == 0, written.output
    assert (folder / "serve-config.yaml").read_text() == written.stdout, "run `make k8s-config`"
    assert ray_service(overlay)["spec"]["serveConfigV2"] == written.stdout


def test_every_pod_has_the_environment_that_serve_needs(overlay: str) -> None:
    objects = render(overlay)
    [node_env] = [
        each
        for each in objects
        if each["kind"] == "ConfigMap" and each["metadata"]["name"].startswith("node-env-")
    ]
    assert node_env["data"] == serve_environment()
    for group in groups(owner(overlay)):
        [container] = group["template"]["spec"]["containers"]
        name = {"configMapRef": {"name": node_env["metadata"]["name"]}}
        assert name in container["envFrom"]


def test_pods_may_do_little(overlay: str) -> None:
    item = owner(overlay)
    for pod in pods(item):
        spec = pod["spec"]
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in spec["containers"] + spec.get("initContainers", []):
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    for group in cluster_of(item)["workerGroupSpecs"]:
        assert group["template"]["spec"]["automountServiceAccountToken"] is False


def test_rays_ports_are_not_for_clients(overlay: str) -> None:
    objects = render(overlay)
    assert not [each for each in objects if each["kind"] == "Ingress"]
    for service in (each for each in objects if each["kind"] == "Service"):
        assert service["spec"].get("type", "ClusterIP") == "ClusterIP"
        assert not RAY_PORTS & {port["port"] for port in service["spec"]["ports"]} or (
            service["metadata"]["name"] == "redis"
        )
    policies = [each["spec"] for each in objects if each["kind"] == "NetworkPolicy"]
    assert {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]} in policies
    for rule in (rule for policy in policies for rule in policy.get("ingress", [])):
        if "namespaceSelector" in str(rule) and "kuberay-operator" not in str(rule):
            assert {port["port"] for port in rule["ports"]} == {8000}


def test_budgets_leave_room_to_empty_a_node(overlay: str) -> None:
    objects = render(overlay)
    head, workers = groups(owner(overlay))[:2]
    num_pods = {"head": 1, "worker": workers["maxReplicas"] * workers.get("numOfHosts", 1)}
    for budget in (each for each in objects if each["kind"] == "PodDisruptionBudget"):
        labels = budget["spec"]["selector"]["matchLabels"]
        kind = labels.pop("ray.io/node-type")
        for group in (head, workers):
            assert labels.items() <= group["template"]["metadata"]["labels"].items()
        # Of pods whose owner cannot be scaled by Kubernetes it knows this kind alone.
        assert budget["spec"].keys() == {"selector", "minAvailable"}
        assert kind == "head" or budget["spec"]["minAvailable"] < num_pods[kind]


# What the checks are there for: mistakes, each of which one of them must find.


def service_of_two_nodes() -> Object:
    return ray_service("multi-host")


def test_a_typo_is_found() -> None:
    service = service_of_two_nodes()
    [workers] = service["spec"][CLUSTER]["workerGroupSpecs"]
    workers["numOfHost"] = workers.pop("numOfHosts")
    assert "numOfHost" in str(object_schema.problems_of(service))


def test_a_typo_in_a_pod_is_found() -> None:
    service = service_of_two_nodes()
    [workers] = service["spec"][CLUSTER]["workerGroupSpecs"]
    [container] = workers["template"]["spec"]["containers"]
    container["volumeMount"] = container.pop("volumeMounts")
    assert "volumeMount" in str(object_schema.problems_of(service))


def test_a_typo_in_the_serve_config_is_found() -> None:
    service = service_of_two_nodes()
    config = edit_config(service)
    config["applications"][0]["route_prefx"] = config["applications"][0].pop("route_prefix")
    service["spec"]["serveConfigV2"] = yaml.safe_dump(config)
    assert "route_prefx" in str(serving_rules.problems_of(service))


def test_an_import_path_that_leads_nowhere_is_found() -> None:
    service = service_of_two_nodes()
    config = edit_config(service)
    config["applications"][0]["import_path"] = "deployments.app:biuld"
    service["spec"]["serveConfigV2"] = yaml.safe_dump(config)
    assert "biuld" in str(serving_rules.problems_of(service))


def test_upgrades_can_go_step_by_step_where_there_is_an_autoscaler() -> None:
    service = ray_service(GRADUAL)
    assert object_schema.problems_of(service) == []
    assert operator_rules.problems_of(service) == []
    service["spec"][CLUSTER]["enableInTreeAutoscaling"] = False
    del service["spec"][CLUSTER]["autoscalerOptions"]
    assert operator_rules.problems_of(service) == ["incremental upgrades need the autoscaler"]


def test_a_step_that_is_more_than_the_surge_is_found() -> None:
    service = ray_service(GRADUAL)
    service["spec"]["upgradeStrategy"]["clusterUpgradeOptions"]["stepSizePercent"] = 60
    assert operator_rules.problems_of(service) == ["stepSizePercent is more than maxSurgePercent"]


def test_a_wrong_upgrade_strategy_is_found() -> None:
    service = service_of_two_nodes()
    service["spec"]["upgradeStrategy"]["type"] = "RollingUpdate"
    assert object_schema.problems_of(service) == [], "the CRD takes it, so the rule is needed"
    assert "RollingUpdate" in str(operator_rules.problems_of(service))


@pytest.mark.parametrize("num_gpus", ["2", "8"])
def test_gpus_that_do_not_match_the_tensor_parallel_size_are_found(num_gpus: str) -> None:
    service = service_of_two_nodes()
    [workers] = service["spec"][CLUSTER]["workerGroupSpecs"]
    resources = workers["template"]["spec"]["containers"][0]["resources"]
    for each in resources.values():
        each["nvidia.com/gpu"] = num_gpus
    assert f"the pods have {2 * int(num_gpus)}" in str(serving_rules.problems_of(service))


def test_another_version_of_ray_than_the_locked_one_is_found() -> None:
    service = service_of_two_nodes()
    service["spec"][CLUSTER]["rayVersion"] = "2.59.0"
    assert "2.59.0" in str(serving_rules.problems_of(service))


def test_an_autoscaler_whose_pods_start_again_is_found() -> None:
    service = ray_service("autoscale")
    del service["spec"][CLUSTER]["headGroupSpec"]["template"]["spec"]["restartPolicy"]
    assert "restartPolicy" in str(operator_rules.problems_of(service))


def test_redis_that_is_set_twice_is_found() -> None:
    service = ray_service("ha-redis")
    service["spec"][CLUSTER]["headGroupSpec"]["rayStartParams"]["redis-password"] = "x"
    assert "redis-password" in str(operator_rules.problems_of(service))


def test_pods_that_are_killed_while_they_drain_are_found() -> None:
    service = service_of_two_nodes()
    [workers] = service["spec"][CLUSTER]["workerGroupSpecs"]
    workers["template"]["spec"]["terminationGracePeriodSeconds"] = 30
    assert "drained" in str(serving_rules.problems_of(service))


def test_another_model_than_the_one_that_pods_fetch_is_found() -> None:
    service = service_of_two_nodes()
    config = edit_config(service)
    config["applications"][0]["args"]["models"][0]["model"] = "Qwen/Qwen3-8B"
    service["spec"]["serveConfigV2"] = yaml.safe_dump(config)
    assert "Qwen/Qwen3-8B" in str(serving_rules.problems_of(service))


def test_models_that_are_fetched_to_elsewhere_are_found() -> None:
    service = service_of_two_nodes()
    [workers] = service["spec"][CLUSTER]["workerGroupSpecs"]
    [container] = workers["template"]["spec"]["initContainers"]
    container["env"] = [each for each in container["env"] if each["name"] != "PAGERAY_CACHE"]
    assert "fetches to elsewhere" in str(serving_rules.problems_of(service))


def edit_config(service: Object) -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load(service["spec"]["serveConfigV2"])
    return config
