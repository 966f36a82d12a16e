"""What KubeRay's operator refuses and its CRDs do not say.

After ray-operator/controllers/ray/utils/validation.go of v1.7.0, as far as our objects use it.
"""

import re
from typing import Final

import yaml

from tests.k8s.render import CLUSTER, Object, cluster_of, groups

UPGRADES: Final = ("None", "NewCluster", "NewClusterWithIncrementalUpgrade")
MODES: Final = ("K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode")
MAX_NAME_CHARS: Final = 47
"""Of a RayService or RayJob: names of clusters, services and pods are made from it."""
NAME: Final = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
TOKEN_SINCE: Final = (2, 52)


def problems_of(item: Object) -> list[str]:
    """What the operator would say of a RayService or a RayJob."""
    if item["kind"] == "RayJob":
        found = [*_of_name(item), *_of_job(item), *_of_deletion(item), *_of_submitter(item)]
        if "rayClusterSpec" not in item["spec"]:
            return found
    else:
        found = [*_of_name(item), *_of_service(item), *_of_service_port(item["spec"][CLUSTER])]
    cluster = cluster_of(item)
    return [
        *found,
        *_of_version(cluster),
        *_of_autoscaler(cluster),
        *_of_gcs(item),
        *(problem for group in cluster["workerGroupSpecs"] for problem in _of_workers(group)),
    ]


def _of_name(item: Object) -> list[str]:
    name = item["metadata"]["name"]
    found = [] if NAME.fullmatch(name) else [f"the name {name} is no DNS label"]
    if len(name) > MAX_NAME_CHARS:
        found.append(f"the name has more than {MAX_NAME_CHARS} characters")
    return found


def _of_job(job: Object) -> list[str]:
    spec = job["spec"]
    found = []
    selector, suspended = spec.get("clusterSelector"), spec.get("suspend", False)
    if suspended and (selector or not spec.get("shutdownAfterJobFinishes")):
        found.append("suspend needs a cluster of its own and shutdownAfterJobFinishes")
    if not selector and "rayClusterSpec" not in spec:
        found.append("neither rayClusterSpec nor clusterSelector")
    if selector and not selector.get("ray.io/cluster"):
        found.append("clusterSelector names no ray.io/cluster")
    if spec.get("activeDeadlineSeconds", 1) <= 0:
        found.append("activeDeadlineSeconds is not positive")
    if spec.get("backoffLimit", 0) < 0:
        found.append("backoffLimit is negative")
    try:
        yaml.safe_load(spec.get("runtimeEnvYAML", ""))
    except yaml.YAMLError as error:
        found.append(f"runtimeEnvYAML is no YAML: {error}")
    return found


def _of_deletion(job: Object) -> list[str]:
    spec = job["spec"]
    shuts_down, ttl_s = spec.get("shutdownAfterJobFinishes"), spec.get("ttlSecondsAfterFinished", 0)
    found = []
    if ttl_s < 0:
        found.append("ttlSecondsAfterFinished is negative")
    if ttl_s > 0 and not shuts_down:
        found.append("ttlSecondsAfterFinished without shutdownAfterJobFinishes")
    if "deletionStrategy" in spec:
        strategy = spec["deletionStrategy"]
        rules, outcomes = strategy.get("deletionRules"), strategy.keys() - {"deletionRules"}
        if rules and (shuts_down or outcomes):
            found.append("deletionRules beside shutdownAfterJobFinishes, onSuccess or onFailure")
        if not rules and outcomes != {"onSuccess", "onFailure"}:
            found.append("deletionStrategy needs deletionRules, or onSuccess and onFailure")
    return found


def _of_submitter(job: Object) -> list[str]:
    spec = job["spec"]
    mode = spec.get("submissionMode", "K8sJobMode")
    found = [] if mode in MODES else [f"submissionMode {mode} is none of {', '.join(MODES)}"]
    if mode == "InteractiveMode" and spec.get("backoffLimit", 0) > 0:
        found.append("backoffLimit in InteractiveMode")
    if mode == "SidecarMode":
        found += [
            f"{key} in SidecarMode"
            for key in ("clusterSelector", "submitterPodTemplate", "submitterConfig")
            if key in spec
        ]
        if groups(job)[0]["template"]["spec"].get("restartPolicy", "Never") != "Never":
            found.append("SidecarMode needs restartPolicy Never in the head's pod")
    template = spec.get("submitterPodTemplate")
    # Kubernetes takes no Job of pods that always start again, which is what they do by themselves.
    if template and template["spec"].get("restartPolicy") not in ("Never", "OnFailure"):
        found.append("submitterPodTemplate needs restartPolicy Never or OnFailure")
    return found


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


def _of_gcs(item: Object) -> list[str]:
    cluster, annotations = cluster_of(item), item["metadata"].get("annotations", {})
    if "gcsFaultToleranceOptions" not in cluster:
        return []
    found = []
    if "ray.io/ft-enabled" in annotations:
        found.append("annotation ray.io/ft-enabled beside gcsFaultToleranceOptions")
    if "redis-password" in cluster["headGroupSpec"].get("rayStartParams", {}):
        found.append("redis-password in rayStartParams beside gcsFaultToleranceOptions")
    for group in groups(item):
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
