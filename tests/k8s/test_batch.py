"""The batch: a RayJob on the cluster of an overlay, and what would be wrong with one.

That its objects are sound is checked with those of the overlays.
"""

from typing import Any

import pytest

from tests.k8s import object_schema, operator_rules, serving_rules
from tests.k8s.render import BATCH, cluster_of, groups, kustomize, ray_job, ray_service, render

pytestmark = pytest.mark.skipif(
    kustomize() is None, reason="renders with kustomize or kubectl, and neither is here"
)


def test_nothing_is_left_of_the_service() -> None:
    objects = render(BATCH)
    kinds = {each["kind"] for each in objects}
    assert not kinds & {"RayService", "Service", "Ingress", "Gateway", "HTTPRoute"}
    names = {each["metadata"]["name"] for each in objects if each["kind"] == "NetworkPolicy"}
    assert names == {"pageray-deny", "pageray-cluster", "pageray-operator", "pageray-egress"}


def test_its_cluster_is_that_of_the_overlay_but_for_the_drain() -> None:
    job, service = cluster_of(ray_job()), cluster_of(ray_service("single-gpu"))
    [workers], [served] = job["workerGroupSpecs"], service["workerGroupSpecs"]
    spec, its_spec = workers["template"]["spec"], served["template"]["spec"]
    assert its_spec["containers"][0].pop("lifecycle")
    assert its_spec.pop("terminationGracePeriodSeconds") > spec.pop("terminationGracePeriodSeconds")
    assert workers == served


def test_its_pods_reach_each_other() -> None:
    job = ray_job()
    templates = [group["template"] for group in groups(job)] + [job["spec"]["submitterPodTemplate"]]
    for template in templates:
        assert template["metadata"]["labels"]["app.kubernetes.io/part-of"] == "pageray"


# What the checks are there for: mistakes, each of which one of them must find.


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"shutdownAfterJobFinishes": False}, "ttlSecondsAfterFinished without"),
        ({"ttlSecondsAfterFinished": -1}, "ttlSecondsAfterFinished is negative"),
        ({"backoffLimit": -1}, "backoffLimit is negative"),
        ({"activeDeadlineSeconds": 0}, "activeDeadlineSeconds"),
        ({"submissionMode": "JobMode"}, "JobMode is none of"),
        ({"submissionMode": "InteractiveMode"}, "backoffLimit in InteractiveMode"),
        ({"submissionMode": "SidecarMode"}, "submitterPodTemplate in SidecarMode"),
        ({"suspend": True, "shutdownAfterJobFinishes": False}, "suspend needs"),
        ({"suspend": True, "clusterSelector": {"ray.io/cluster": "x"}}, "suspend needs"),
        ({"clusterSelector": {"cluster": "x"}}, "names no ray.io/cluster"),
        ({"deletionStrategy": {"onSuccess": {"policy": "DeleteCluster"}}}, "and onFailure"),
        ({"deletionStrategy": {"deletionRules": [{"policy": "DeleteSelf"}]}}, "deletionRules"),
        ({"runtimeEnvYAML": "{"}, "no YAML"),
    ],
)
def test_what_the_operator_refuses_is_found(changes: dict[str, Any], says: str) -> None:
    job = ray_job()
    job["spec"].update(changes)
    assert says in str(operator_rules.problems_of(job))


def test_a_job_without_a_cluster_is_found() -> None:
    job = ray_job()
    del job["spec"]["rayClusterSpec"]
    assert "neither rayClusterSpec nor" in str(operator_rules.problems_of(job))


@pytest.mark.parametrize("name", ["Batch", "1-batch", "b" * 48])
def test_a_name_that_no_cluster_can_have_is_found(name: str) -> None:
    job = ray_job()
    job["metadata"]["name"] = name
    assert "the name" in str(operator_rules.problems_of(job))


def test_a_submitter_that_starts_again_for_ever_is_found() -> None:
    job = ray_job()
    del job["spec"]["submitterPodTemplate"]["spec"]["restartPolicy"]
    assert object_schema.problems_of(job) == [], "a pod may do so, so the rule is needed"
    assert "restartPolicy" in str(operator_rules.problems_of(job))


def test_typos_are_found() -> None:
    job = ray_job()
    job["spec"]["ttlSecondsAfterFinish"] = job["spec"].pop("ttlSecondsAfterFinished")
    assert "ttlSecondsAfterFinish" in str(object_schema.problems_of(job))
    job = ray_job()
    submitter = job["spec"]["submitterPodTemplate"]["spec"]
    submitter["container"] = submitter.pop("containers")
    assert "container" in str(object_schema.problems_of(job))


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("Qwen/Qwen3-8B", "Qwen/Qwen3-4B", "Qwen/Qwen3-4B"),
        ("--preset throughput", "--replicas 2", "the replicas take 2 GPUs, and the pods have 1"),
        ("--device cuda", "--device cpu", "the replicas take 0 GPUs"),
        ("/models", "/cache", "mounts nothing at /cache"),
        ("/data/output.jsonl", "/tmp/output.jsonl", "/tmp/output.jsonl is on no volume"),
        ("--address auto", "", "a Ray of its own"),
    ],
)
def test_an_entrypoint_that_does_not_fit_its_cluster_is_found(
    old: str, new: str, says: str
) -> None:
    job = ray_job()
    assert old in job["spec"]["entrypoint"]
    job["spec"]["entrypoint"] = job["spec"]["entrypoint"].replace(old, new)
    assert says in str(serving_rules.problems_of(job))
