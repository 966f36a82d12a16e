"""What KubeRay's operator refuses and its CRDs do not say.

After ray-operator/controllers/ray/utils/validation.go of v1.7.0, as far as our objects use it.
"""

from typing import Final

from tests.k8s.render import CLUSTER, Object, groups

UPGRADES: Final = ("None", "NewCluster", "NewClusterWithIncrementalUpgrade")
MAX_NAME_CHARS: Final = 47
"""Of a RayService: names of its clusters, services and pods are made from it."""
TOKEN_SINCE: Final = (2, 52)


def problems_of(service: Object) -> list[str]:
    """What the operator would say of a RayService."""
    cluster = service["spec"][CLUSTER]
    return [
        *_of_service(service),
        *_of_version(cluster),
        *_of_service_port(cluster),
        *_of_autoscaler(cluster),
        *_of_gcs(service),
        *(problem for group in cluster["workerGroupSpecs"] for problem in _of_workers(group)),
    ]


def _of_service(service: Object) -> list[str]:
    found = []
    upgrade = service["spec"].get("upgradeStrategy", {})
    if upgrade.get("type", "NewCluster") not in UPGRADES:
        found.append(f"upgradeStrategy.type {upgrade['type']} is none of {', '.join(UPGRADES)}")
    incremental = upgrade.get("type") == "NewClusterWithIncrementalUpgrade"
    options = upgrade.get("clusterUpgradeOptions")
    if incremental and not service["spec"][CLUSTER].get("enableInTreeAutoscaling"):
        found.append("incremental upgrades need the autoscaler")
    if incremental and not (options and options.get("gatewayClassName")):
        found.append("incremental upgrades need clusterUpgradeOptions with a gatewayClassName")
    if options and options.get("stepSizePercent", 0) > options.get("maxSurgePercent", 100):
        found.append("stepSizePercent is more than maxSurgePercent")
    if service["spec"].get("rayClusterDeletionDelaySeconds", 0) < 0:
        found.append("rayClusterDeletionDelaySeconds is negative")
    if len(service["metadata"]["name"]) > MAX_NAME_CHARS:
        found.append(f"the name has more than {MAX_NAME_CHARS} characters")
    return found


def _of_service_port(cluster: Object) -> list[str]:
    """Versions that fill it in themselves mind nothing."""
    [head] = cluster["headGroupSpec"]["template"]["spec"]["containers"]
    names = {port["name"] for port in head["ports"]}
    return [] if "serve" in names else ["the head names no port serve: there will be no service"]


def _of_version(cluster: Object) -> list[str]:
    major, minor = map(int, cluster["rayVersion"].split(".")[:2])
    if cluster.get("authOptions", {}).get("mode") == "token" and (major, minor) < TOKEN_SINCE:
        return [f"authOptions.mode token needs Ray 2.52, and rayVersion is {cluster['rayVersion']}"]
    return []


def _of_autoscaler(cluster: Object) -> list[str]:
    options = cluster.get("autoscalerOptions", {})
    if options and not cluster.get("enableInTreeAutoscaling"):
        return ["autoscalerOptions without enableInTreeAutoscaling"]
    if options.get("version") != "v2":
        return []
    every = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    policies = {group["template"]["spec"].get("restartPolicy") for group in every}
    return [] if policies == {"Never"} else ["autoscaler v2 needs restartPolicy Never in all pods"]


def _of_gcs(service: Object) -> list[str]:
    cluster, annotations = service["spec"][CLUSTER], service["metadata"].get("annotations", {})
    if "gcsFaultToleranceOptions" not in cluster:
        return []
    found = []
    if "ray.io/ft-enabled" in annotations:
        found.append("annotation ray.io/ft-enabled beside gcsFaultToleranceOptions")
    if "redis-password" in cluster["headGroupSpec"].get("rayStartParams", {}):
        found.append("redis-password in rayStartParams beside gcsFaultToleranceOptions")
    for group in groups(service):
        for container in group["template"]["spec"]["containers"]:
            names = {variable["name"] for variable in container.get("env", [])}
            if names & {"RAY_REDIS_ADDRESS", "REDIS_PASSWORD"}:
                found.append(f"{container['name']} sets Redis in its environment as well")
    return found


def _of_workers(group: Object) -> list[str]:
    found = []
    least, wanted, most = (group.get(key) for key in ("minReplicas", "replicas", "maxReplicas"))
    if least is None or most is None:
        found.append(f"group {group['groupName']}: minReplicas and maxReplicas are missing")
    elif not least <= wanted <= most:
        found.append(f"group {group['groupName']}: {least} <= {wanted} <= {most} does not hold")
    if group.get("numOfHosts", 1) < 1:
        found.append(f"group {group['groupName']}: numOfHosts is less than 1")
    if not group["template"]["spec"].get("containers"):
        found.append(f"group {group['groupName']}: no container")
    return found
