"""Options of `pageray serve` that say what each engine runs and how: names, aliases, help.

vLLM's and TGI's names for the same thing are aliases; an option of theirs that means nothing here
is not accepted. What the options become is in `deployments.cli_settings`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from deployments.args import AppArgs, ModelArgs

Dtype = Literal["auto", "float32", "bfloat16", "float16", "float", "half"]
PresetName = Literal["interactive", "interactivity", "balanced", "throughput"]


def default(name: str) -> Any:
    """Return the default of an argument of the application or of a model."""
    return (ModelArgs.model_fields | AppArgs.model_fields)[name].default


def option(panel: str, *names: str, **settings: Any) -> Any:
    """Describe an option in its panel of the help."""
    return typer.Option(*names, rich_help_panel=panel, **settings)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
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
        option("Model", "--model", "--model-id", help="The same as MODEL.", show_default=False),
    ] = None
    served_model_name: Annotated[
        str | None,
        option(
            "Model", "--served-model-name", metavar="NAME", help="Model name that requests use."
        ),
    ] = None
    cache_dir: Annotated[
        Path | None,
        option(
            "Model",
            "--cache-dir",
            "--download-dir",
            help="Where fetched models are kept.",
            show_default="$PAGERAY_CACHE or ~/.cache/pageray",
        ),
    ] = None
    load_format: Annotated[
        Literal["auto", "dummy"],
        option(
            "Model",
            "--load-format",
            help="dummy: random weights, of which config.json tells the shapes.",
        ),
    ] = default("load_format")
    dtype: Annotated[
        Dtype, option("Model", "--dtype", help="Type of weights and KV cache; auto: the fastest.")
    ] = default("dtype")
    quantization: Annotated[
        Literal["w8a8", "fp8"] | None,
        option(
            "Model",
            "--quantization",
            "-q",
            "--quantize",
            help="w8a8: int8 weights and inputs of products, for float32 on CPU; fp8: float8 "
            "weights, on CUDA.",
            show_default="as stored",
        ),
    ] = default("quantization")
    device: Annotated[
        Literal["auto", "cpu", "cuda"],
        option("Model", "--device", help="auto: cuda when the Ray cluster has a GPU."),
    ] = default("device")
    max_model_len: Annotated[
        int | None,
        option(
            "Model",
            "--max-model-len",
            "--max-total-tokens",
            min=1,
            metavar="N",
            help="Longest prompt plus output in tokens.",
            show_default="what the model was made for, if it fits",
        ),
    ] = default("max_model_len")

    memory_utilization: Annotated[
        float,
        option(
            "Memory",
            "--gpu-memory-utilization",
            "--memory-utilization",
            "--cuda-memory-fraction",
            metavar="F",
            help="Share of a GPU's memory to use; on CPU half of this share of what is free.",
        ),
    ] = default("memory_utilization")
    kv_cache_memory: Annotated[
        str | None,
        option(
            "Memory",
            "--kv-cache-memory",
            "--kv-cache-memory-bytes",
            metavar="SIZE",
            help="KV cache of each replica, like 512MiB; overrides the share.",
        ),
    ] = None
    kv_cache_dtype: Annotated[
        Literal["auto", "fp8", "fp8_e4m3"],
        option(
            "Memory",
            "--kv-cache-dtype",
            help="fp8: KV in float8, which takes half the memory, on CUDA; auto: in the dtype.",
        ),
    ] = default("kv_cache_dtype")
    host_kv_memory: Annotated[
        str | None,
        option(
            "Memory",
            "--host-kv-memory",
            "--kv-offloading-size",
            metavar="SIZE",
            help="Host memory of each replica for KV blocks that the cache has no room for.",
            show_default="none",
        ),
    ] = None
    block_size: Annotated[
        int, option("Memory", "--block-size", metavar="N", help="Tokens in a KV block.")
    ] = default("block_size")
    enable_prefix_caching: Annotated[
        bool,
        option(
            "Memory",
            "--enable-prefix-caching/--no-enable-prefix-caching",
            help="Share the KV blocks of equal prompt beginnings.",
        ),
    ] = default("enable_prefix_caching")

    preset: Annotated[
        PresetName,
        option(
            "Batching",
            "--preset",
            "--performance-mode",
            help="Favour even gaps between tokens, full steps, or what the load calls for.",
        ),
    ] = default("preset")
    deterministic: Annotated[
        bool,
        option(
            "Batching",
            "--deterministic",
            help="Same tokens whatever else runs and whatever is cached; float32 on CPU.",
        ),
    ] = default("deterministic")
    enforce_eager: Annotated[
        bool,
        option(
            "Batching",
            "--enforce-eager",
            help="Launch every kernel on its own: no CUDA graphs, less memory, slower decodes.",
        ),
    ] = default("enforce_eager")
    max_num_seqs: Annotated[
        int,
        option(
            "Batching",
            "--max-num-seqs",
            "--max-batch-size",
            metavar="N",
            help="Most sequences in one step.",
        ),
    ] = default("max_num_seqs")
    max_num_batched_tokens: Annotated[
        int | None,
        option(
            "Batching",
            "--max-num-batched-tokens",
            "--max-batch-prefill-tokens",
            metavar="N",
            help="Most tokens in one step.",
            show_default="512 on CPU; 2048 on CUDA and with --preset throughput",
        ),
    ] = default("max_num_batched_tokens")
    max_num_waiting: Annotated[
        int,
        option(
            "Batching",
            "--max-num-waiting",
            min=1,
            metavar="N",
            help="Most sequences that wait in a replica; more are refused.",
        ),
    ] = default("max_num_waiting")
    num_threads: Annotated[
        int | None,
        option(
            "Batching",
            "--num-threads",
            min=1,
            metavar="N",
            help="Compute threads of each rank on CPU.",
            show_default="cores divided by ranks",
        ),
    ] = default("num_threads")
