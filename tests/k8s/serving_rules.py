"""Whether what is served fits the pods that serve it, and both the versions that are locked."""

import importlib
import re
import shlex
from pathlib import Path
from typing import Any, Final

import yaml
from pydantic import BaseModel
from ray.serve.schema import ServeDeploySchema
from typer.testing import CliRunner

from deployments.app import FRONTEND_CPUS, SUPERVISOR_CPUS
from deployments.args import AppArgs
from deployments.cli import app
from tests.k8s.render import CLUSTER, Object, cluster_of, groups

CONSTRAINTS: Final = Path(__file__).parents[2] / "constraints.txt"
GPU: Final = "nvidia.com/gpu"


def problems_of(item: Object) -> list[str]:
    """What would not work, or not as meant."""
    is_job = item["kind"] == "RayJob"
    text = _config_of_batch(item) if is_job else item["spec"]["serveConfigV2"]
    config = yaml.safe_load(text)
    found = _of_config(config)
    if found:
        return found
    [application] = config["applications"]
    args = AppArgs.model_validate(application["args"])
    return [
        *_of_version(item),
        *_of_room(item, args),
        *_of_models(item, args),
        *(_of_batch(item) if is_job else _of_time(item, args)),
    ]


def _config_of_batch(job: Object) -> str:
    """What `pageray config` writes with the options that the entrypoint has for `serve`."""
    command, _files, options = _entrypoint(job)
    assert command == ["pageray", "batch"]
    written = CliRunner().invoke(app, ["config", *options])
    assert written.exit_code == 0, written.output
    return written.stdout


def _entrypoint(job: Object) -> tuple[list[str], list[str], list[str]]:
    """Its command, the two files of the batch and the rest."""
    words = shlex.split(job["spec"]["entrypoint"])
    return words[:2], words[2:4], words[4:]


def _of_batch(job: Object) -> list[str]:
    """The entrypoint runs on the head, which has no engine."""
    [head] = groups(job)[0]["template"]["spec"]["containers"]
    kept = {mount["mountPath"] for mount in head.get("volumeMounts", [])}
    _, files, options = _entrypoint(job)
    found = [f"{file} is on no volume" for file in files if str(Path(file).parent) not in kept]
    if "--address auto" not in " ".join(options):
        found.append(
            "the batch would start a Ray of its own on the head: --address auto is missing"
        )
    return found


def _of_config(config: dict[str, Any]) -> list[str]:
    """Ray ignores keys that it does not know."""
    found = [*_unknown_keys(config, ServeDeploySchema, "serveConfigV2")]
    if found:
        return found
    for application in ServeDeploySchema.model_validate(config).applications:
        if not (application.route_prefix or "/").startswith("/"):
            found.append(f"route_prefix {application.route_prefix} does not start with /")
        module, _, name = application.import_path.partition(":")
        try:
            getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError) as error:
            found.append(f"import_path {application.import_path}: {error}")
    return found


def _unknown_keys(value: Any, model: type[BaseModel], place: str) -> list[str]:
    known = model.model_fields
    found = [f"{place}: unknown key {key}" for key in value.keys() - known.keys()]
    for key in value.keys() & known.keys():
        for inner in _models_in(known[key].annotation):
            items = value[key] if isinstance(value[key], list) else [value[key]]
            for item in items:
                if isinstance(item, dict):
                    found += _unknown_keys(item, inner, f"{place}.{key}")
    return found


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in getattr(annotation, "__args__", ()) for model in _models_in(part)]


def _of_version(item: Object) -> list[str]:
    version = cluster_of(item)["rayVersion"]
    locked = re.search(r"^ray==(\S+)$", CONSTRAINTS.read_text(), re.MULTILINE)
    assert locked is not None
    if version != locked[1]:
        return [f"rayVersion is {version}, and constraints.txt has {locked[1]}"]
    return []


def _of_room(item: Object, args: AppArgs) -> list[str]:
    """Every replica at once, on pods as many as there may be."""
    found = []
    num_gpus, num_cpus, most = 0, 0.0, 0
    for group in cluster_of(item)["workerGroupSpecs"]:
        [container] = group["template"]["spec"]["containers"]
        limits = container["resources"]["limits"]
        if limits != container["resources"]["requests"]:
            found.append(f"group {group['groupName']}: requests differ from limits")
        num_pods = group["maxReplicas"] * group.get("numOfHosts", 1)
        num_gpus += num_pods * int(limits.get(GPU, 0))
        num_cpus += num_pods * float(limits["cpu"])
        most = max(most, int(limits.get(GPU, 0)) * group.get("numOfHosts", 1))
    ranks = sum(model.replicas_max * model.tensor_parallel_size for model in args.models)
    replicas = sum(model.replicas_max for model in args.models)
    wanted = sum(
        model.replicas_max * model.tensor_parallel_size
        for model in args.models
        if model.device == "cuda"
    )
    if wanted != num_gpus:
        found.append(f"the replicas take {wanted} GPUs, and the pods have {num_gpus}")
    for model in args.models:
        if model.device == "cuda" and model.tensor_parallel_size > most:
            size = model.tensor_parallel_size
            found.append(f"{model.model} takes {size} GPUs, and a group of pods has {most}")
    needed = ranks + replicas * SUPERVISOR_CPUS + args.num_frontends * FRONTEND_CPUS
    if needed > num_cpus:
        found.append(f"replicas and frontends take {needed:g} CPUs, and the pods have {num_cpus:g}")
    return found


def _of_models(item: Object, args: AppArgs) -> list[str]:
    fetched = {
        container["args"][0]
        for group in groups(item)
        for container in group["template"]["spec"].get("initContainers", [])
        if container["command"] == ["pageray", "pull"]
    }
    served = {model.model for model in args.models}
    found = [] if fetched == served else [f"pods fetch {fetched}, and {served} are served"]
    for group in cluster_of(item)["workerGroupSpecs"]:
        for container in _containers(group):
            mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
            variables = {each["name"]: each.get("value") for each in container["env"]}
            if str(args.cache_dir) not in mounts:
                found.append(f"{container['name']} mounts nothing at {args.cache_dir}")
            if not str(variables.get("HF_HOME")).startswith(str(args.cache_dir)):
                found.append(f"{container['name']} has HF_HOME outside of {args.cache_dir}")
            if container["command"] and variables.get("PAGERAY_CACHE") != str(args.cache_dir):
                found.append(f"{container['name']} fetches to elsewhere than {args.cache_dir}")
    return found


def _containers(group: Object) -> list[Object]:
    spec = group["template"]["spec"]
    return [
        {"command": None, **container}
        for container in spec["containers"] + spec.get("initContainers", [])
    ]


def _of_time(service: Object, args: AppArgs) -> list[str]:
    spec = service["spec"]
    found = []
    if spec["rayClusterDeletionDelaySeconds"] <= args.drain_timeout_s:
        found.append("the old cluster goes before its streams have had their time to drain")
    for group in spec[CLUSTER]["workerGroupSpecs"]:
        grace_s = group["template"]["spec"]["terminationGracePeriodSeconds"]
        if grace_s <= args.drain_timeout_s:
            found.append(f"group {group['groupName']}: pods are killed before they have drained")
    return found
