"""Kubernetes objects as the overlays give them."""

import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any, Final

import yaml

K8S: Final = Path(__file__).parents[2] / "k8s"
OVERLAYS: Final = sorted(path.name for path in (K8S / "overlays").iterdir())
BATCH: Final = "../batch"
"""Beside the overlays: what they serve for as long as they are there, this does once."""
CLUSTER: Final = "rayClusterConfig"

Object = dict[str, Any]


def kustomize() -> list[str] | None:
    """The command that renders, if there is one here."""
    for command in (["kustomize", "build"], ["kubectl", "kustomize"]):
        if shutil.which(command[0]):
            return command
    return None


def render(overlay: str) -> list[Object]:
    """The objects of an overlay, in a copy of the caller's own."""
    objects: list[Object] = list(yaml.safe_load_all(_render(overlay)))
    return objects


@cache
def _render(overlay: str) -> str:
    command = kustomize()
    assert command is not None
    folder = str(K8S / "overlays" / overlay)
    return subprocess.run([*command, folder], stdout=subprocess.PIPE, text=True, check=True).stdout


def only(objects: list[Object], kind: str) -> Object:
    """The one object of a kind."""
    [found] = [each for each in objects if each["kind"] == kind]
    return found


def ray_service(overlay: str) -> Object:
    """The RayService of an overlay."""
    return only(render(overlay), "RayService")


def ray_job() -> Object:
    """The RayJob of the batch."""
    return only(render(BATCH), "RayJob")


def owner(overlay: str) -> Object:
    """Whoever has the Ray cluster."""
    return ray_job() if overlay == BATCH else ray_service(overlay)


def cluster_of(item: Object) -> Object:
    """The cluster of a RayService or a RayJob."""
    cluster: Object = item["spec"]["rayClusterSpec" if item["kind"] == "RayJob" else CLUSTER]
    return cluster


def groups(item: Object) -> list[Object]:
    """The head's group and the workers'."""
    cluster = cluster_of(item)
    return [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]


def pods(item: Object) -> list[Object]:
    """The pod of each group, and the one that hands in a job, as objects of their own."""
    templates = [group["template"] for group in groups(item)]
    if "submitterPodTemplate" in item["spec"]:
        templates.append(item["spec"]["submitterPodTemplate"])
    return [
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "pod", **template.get("metadata", {})},
            "spec": template["spec"],
        }
        for template in templates
    ]
