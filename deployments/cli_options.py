"""Options of `pageray serve` and `pageray config`: their names, aliases and help.

vLLM's and TGI's names for the same thing are aliases; an option of theirs that means nothing here
is not accepted. What the options become is in `deployments.cli_settings`.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import typer

from deployments.args import AppArgs
from deployments.cli_config_file import load_config_file

Dtype = Literal["auto", "float32", "bfloat16", "float16", "float", "half"]


def _default(name: str) -> Any:
    return AppArgs.model_fields[name].default


def _option(panel: str, *names: str, **settings: Any) -> Any:
    return typer.Option(*names, rich_help_panel=panel, **settings)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeOptions:
    """The options as given, checked one by one but not against each other."""

    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL",
            help="Local folder, GGUF file or hub id. Left out: SmolLM2-135M-Instruct.",
            show_default=False,
        ),
    ] = None
    model_id: Annotated[
        str | None,
        _option("Model", "--model", "--model-id", help="The same as MODEL.", show_default=False),
    ] = None
    served_model_name: Annotated[
        str | None,
        _option(
            "Model", "--served-model-name", metavar="NAME", help="Model name that requests use."
        ),
    ] = None
    cache_dir: Annotated[
        Path | None,
        _option(
            "Model",
            "--cache-dir",
            "--download-dir",
            help="Where fetched models are kept.",
            show_default="$PAGERAY_CACHE or ~/.cache/pageray",
        ),
    ] = None
    dtype: Annotated[
        Dtype, _option("Model", "--dtype", help="Type of weights and KV cache; auto: the fastest.")
    ] = _default("dtype")
    device: Annotated[
        Literal["auto", "cpu", "cuda"],
        _option("Model", "--device", help="auto: cuda when the Ray cluster has a GPU."),
    ] = _default("device")
    max_model_len: Annotated[
        int | None,
        _option(
            "Model",
            "--max-model-len",
            "--max-total-tokens",
            min=1,
            metavar="N",
            help="Longest prompt plus output in tokens.",
            show_default="what the model was made for, if it fits",
        ),
    ] = _default("max_model_len")

    memory_utilization: Annotated[
        float,
        _option(
            "Memory",
            "--gpu-memory-utilization",
            "--memory-utilization",
            "--cuda-memory-fraction",
            metavar="F",
            help="Share of a GPU's memory to use; on CPU half of this share of what is free.",
        ),
    ] = _default("memory_utilization")
    kv_cache_memory: Annotated[
        str | None,
        _option(
            "Memory",
            "--kv-cache-memory",
            "--kv-cache-memory-bytes",
            metavar="SIZE",
            help="KV cache of each replica, like 512MiB; overrides the share.",
        ),
    ] = None
    block_size: Annotated[
        int, _option("Memory", "--block-size", metavar="N", help="Tokens in a KV block.")
    ] = _default("block_size")
    enable_prefix_caching: Annotated[
        bool,
        _option(
            "Memory",
            "--enable-prefix-caching/--no-enable-prefix-caching",
            help="Share the KV blocks of equal prompt beginnings.",
        ),
    ] = _default("enable_prefix_caching")

    max_num_seqs: Annotated[
        int,
        _option(
            "Batching",
            "--max-num-seqs",
            "--max-batch-size",
            metavar="N",
            help="Most sequences in one step.",
        ),
    ] = _default("max_num_seqs")
    max_num_batched_tokens: Annotated[
        int | None,
        _option(
            "Batching",
            "--max-num-batched-tokens",
            "--max-batch-prefill-tokens",
            metavar="N",
            help="Most tokens in one step.",
            show_default="512 on CPU, 2048 on CUDA",
        ),
    ] = _default("max_num_batched_tokens")
    max_num_waiting: Annotated[
        int,
        _option(
            "Batching",
            "--max-num-waiting",
            min=1,
            metavar="N",
            help="Most sequences that wait in a replica; more are refused.",
        ),
    ] = _default("max_num_waiting")
    num_threads: Annotated[
        int | None,
        _option(
            "Batching",
            "--num-threads",
            min=1,
            metavar="N",
            help="Compute threads of each rank on CPU.",
            show_default="cores divided by ranks",
        ),
    ] = _default("num_threads")

    tensor_parallel_size: Annotated[
        int,
        _option(
            "Cluster",
            "--tensor-parallel-size",
            "-tp",
            "--num-shard",
            metavar="N",
            help="Ranks that share the model of one replica.",
        ),
    ] = _default("tensor_parallel_size")
    replicas: Annotated[
        str,
        _option(
            "Cluster",
            "--replicas",
            "--data-parallel-size",
            "-dp",
            metavar="N|MIN:MAX",
            help="Copies of the model; with MIN:MAX they follow the demand.",
        ),
    ] = "1"
    num_frontends: Annotated[
        int,
        _option(
            "Cluster",
            "--num-frontends",
            "--api-server-count",
            min=1,
            metavar="N",
            help="HTTP processes in front of the replicas.",
        ),
    ] = _default("num_frontends")
    drain_timeout_s: Annotated[
        float,
        _option(
            "Cluster",
            "--drain-timeout",
            "--shutdown-timeout",
            "--graceful-termination-timeout",
            metavar="S",
            help="Seconds that running requests get when the service stops.",
        ),
    ] = _default("drain_timeout_s")
    address: Annotated[
        str | None,
        _option(
            "Cluster",
            "--address",
            envvar="RAY_ADDRESS",
            help="Ray cluster to join; left out, one is started here.",
        ),
    ] = None
    dashboard: Annotated[
        bool,
        _option(
            "Cluster",
            "--dashboard/--no-dashboard",
            help="Start the Ray dashboard with a cluster of our own.",
        ),
    ] = True
    verbose: Annotated[
        bool, _option("Cluster", "--verbose", "-v", help="Show the logs of all processes here.")
    ] = False

    host: Annotated[
        str | None,
        _option(
            "HTTP",
            "--host",
            "--hostname",
            help="Address to listen on; 0.0.0.0 for every interface.",
            show_default="127.0.0.1, and 0.0.0.0 on a cluster that is joined",
        ),
    ] = None
    port: Annotated[
        int, _option("HTTP", "--port", "-p", min=1, max=65535, help="Port to listen on.")
    ] = 8000
    api_key: Annotated[
        list[str] | None,
        _option(
            "HTTP",
            "--api-key",
            envvar="PAGERAY_API_KEY",
            metavar="KEY",
            help="Key that clients must send; may be given more than once.",
            show_default=False,
        ),
    ] = None
    max_body_size: Annotated[
        str,
        _option(
            "HTTP",
            "--max-body-size",
            "--payload-limit",
            metavar="SIZE",
            help="Largest request body.",
        ),
    ] = "4MiB"

    config: Annotated[
        Path | None,
        typer.Option(
            "--config",
            is_eager=True,
            callback=load_config_file,
            exists=True,
            dir_okay=False,
            metavar="FILE",
            help="YAML file with options by name; the command line comes first.",
        ),
    ] = None


def takes_serve_options(command: Callable[[ServeOptions], None]) -> Callable[..., None]:
    """Give a command every option of ServeOptions, handed over as one value."""

    def run(**values: Any) -> None:
        command(ServeOptions(**values))

    hints = get_type_hints(ServeOptions, include_extras=True)
    run.__name__ = command.__name__
    run.__doc__ = command.__doc__
    run.__annotations__ = hints
    signature = inspect.Signature(
        [
            inspect.Parameter(
                field.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=field.default,
                annotation=hints[field.name],
            )
            for field in fields(ServeOptions)
        ]
    )
    run.__signature__ = signature  # type: ignore[attr-defined]  # typer asks inspect.signature
    return run
