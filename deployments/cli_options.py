"""Options of `pageray serve`, `config` and `plan`, and how a command gets them.

Those of each engine are in deployments/cli_engine_options.py, those of logs and traces in
cli_observability_options.py.
"""

import inspect
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_type_hints

import typer

from deployments.cli_config_file import ConfigFile, load_config_file, read_config_file
from deployments.cli_engine_options import default, option
from deployments.cli_observability_options import ObservabilityOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeOptions(ObservabilityOptions):
    """The options as given, checked one by one but not against each other."""

    tensor_parallel_size: Annotated[
        int,
        option(
            "Cluster",
            "--tensor-parallel-size",
            "-tp",
            "--num-shard",
            metavar="N",
            help="Ranks that share the model of one replica.",
        ),
    ] = default("tensor_parallel_size")
    replicas: Annotated[
        str,
        option(
            "Cluster",
            "--replicas",
            "--data-parallel-size",
            "-dp",
            metavar="N|MIN:MAX",
            help="Copies of the model; with MIN:MAX they follow the demand, to none with 0:MAX.",
        ),
    ] = "1"
    accelerator_labels: Annotated[
        list[str] | None,
        option(
            "Cluster",
            "--accelerator-label",
            "--accelerator-labels",
            metavar="LABEL=VALUE",
            help="Label of the nodes to run on, like gpu=h100; may be given more than once.",
            show_default=False,
        ),
    ] = None
    scale_down_delay_s: Annotated[
        float,
        option(
            "Cluster",
            "--scale-down-delay",
            metavar="S",
            help="Seconds for which a replica must not have been needed before it goes.",
        ),
    ] = default("scale_down_delay_s")
    scale_to_zero_delay_s: Annotated[
        float,
        option(
            "Cluster",
            "--scale-to-zero-delay",
            metavar="S",
            help="Seconds without a request after which the last one goes, with 0:MAX.",
        ),
    ] = default("scale_to_zero_delay_s")
    num_frontends: Annotated[
        int,
        option(
            "Cluster",
            "--num-frontends",
            "--api-server-count",
            min=1,
            metavar="N",
            help="HTTP processes in front of the replicas.",
        ),
    ] = default("num_frontends")
    router_policy: Annotated[
        str,
        option(
            "Cluster",
            "--router-policy",
            metavar="NAME",
            help="How requests are placed on replicas; `pageray simulate` compares the ways.",
        ),
    ] = default("router_policy")
    max_held_requests: Annotated[
        int,
        option(
            "Cluster",
            "--max-held-requests",
            metavar="N",
            help="Requests that each frontend lets wait for a replica with room.",
        ),
    ] = default("max_held_requests")
    max_held_tokens: Annotated[
        int,
        option(
            "Cluster", "--max-held-tokens", metavar="N", help="Prompt tokens of those that wait."
        ),
    ] = default("max_held_tokens")
    max_held_s: Annotated[
        float,
        option("Cluster", "--max-held-time", metavar="S", help="Seconds that a request may wait."),
    ] = default("max_held_s")
    ttft_objective_s: Annotated[
        float,
        option(
            "Cluster",
            "--ttft-objective",
            metavar="S",
            help="Replicas are added while first tokens take longer.",
        ),
    ] = default("ttft_objective_s")
    drain_timeout_s: Annotated[
        float,
        option(
            "Cluster",
            "--drain-timeout",
            "--shutdown-timeout",
            "--graceful-termination-timeout",
            metavar="S",
            help="Seconds that running requests get when the service stops.",
        ),
    ] = default("drain_timeout_s")
    address: Annotated[
        str | None,
        option(
            "Cluster",
            "--address",
            envvar="RAY_ADDRESS",
            help="Ray cluster to join; left out, one is started here.",
        ),
    ] = None

    host: Annotated[
        str | None,
        option(
            "HTTP",
            "--host",
            "--hostname",
            help="Address to listen on; 0.0.0.0 for every interface.",
            show_default="127.0.0.1, and 0.0.0.0 on a cluster that is joined",
        ),
    ] = None
    port: Annotated[
        int, option("HTTP", "--port", "-p", min=1, max=65535, help="Port to listen on.")
    ] = 8000
    api_key: Annotated[
        list[str] | None,
        option(
            "HTTP",
            "--api-key",
            envvar="PAGERAY_API_KEY",
            metavar="KEY",
            help="Key that clients must send; may be given more than once.",
            show_default=False,
        ),
    ] = None
    admin_key: Annotated[
        list[str] | None,
        option(
            "HTTP",
            "--admin-key",
            envvar="PAGERAY_ADMIN_KEY",
            metavar="KEY",
            help="Key without which nobody sees /metrics and /status.",
            show_default=False,
        ),
    ] = None
    api_keys_file: Annotated[
        Path | None,
        option(
            "HTTP",
            "--api-keys-file",
            metavar="FILE",
            help="YAML or JSON list of keys, each with its tenant and what it may; see the README.",
            show_default=False,
        ),
    ] = None
    max_body_size: Annotated[
        str,
        option(
            "HTTP",
            "--max-body-size",
            "--payload-limit",
            metavar="SIZE",
            help="Largest request body.",
        ),
    ] = "4MiB"

    config: Annotated[
        ConfigFile | None,
        typer.Option(
            "--config",
            is_eager=True,
            parser=read_config_file,
            callback=load_config_file,
            metavar="FILE",
            help="YAML file with options by name, and a list `models` where there are several; "
            "the command line comes first.",
        ),
    ] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanOptions(ServeOptions):
    """Those of `pageray plan`: what `serve` would be told, and for which machine."""

    device_memory: Annotated[
        str | None,
        option(
            "Plan",
            "--device-memory",
            metavar="SIZE",
            help="Plan for GPUs of this size that are not here, like 80GiB.",
            show_default="this machine",
        ),
    ] = None
    as_json: Annotated[bool, option("Plan", "--json", help="Print JSON, sizes in bytes.")] = False


Options = TypeVar("Options")


def takes_options(
    options_class: type[Options],
) -> Callable[[Callable[[Options], None]], Callable[..., None]]:
    """Give a command every option of a dataclass, handed over as one value.

    Arguments that must be given come first on the command line.
    """

    def decorate(command: Callable[[Options], None]) -> Callable[..., None]:
        def run(**values: Any) -> None:
            command(options_class(**values))

        assert is_dataclass(options_class)
        hints = get_type_hints(options_class, include_extras=True)
        run.__name__ = command.__name__
        run.__doc__ = command.__doc__
        run.__annotations__ = hints
        signature = inspect.Signature(
            [
                inspect.Parameter(
                    field.name,
                    inspect.Parameter.KEYWORD_ONLY,
                    default=inspect.Parameter.empty if field.default is MISSING else field.default,
                    annotation=hints[field.name],
                )
                for field in sorted(
                    fields(options_class), key=lambda each: each.default is not MISSING
                )
            ]
        )
        run.__signature__ = signature  # type: ignore[attr-defined]  # typer asks inspect.signature
        return run

    return decorate
