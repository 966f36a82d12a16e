"""The same shapes in transformers and, where it is installed, vLLM."""

import importlib.util
import time
from collections.abc import Callable
from pathlib import Path

import torch

from tests.benchmarks.gpu.bench import Bench, Row, Rows

Prompts = list[list[int]]


def measure_transformers(bench: Bench, folder: Path) -> Rows:
    """Yield output tokens per second of `generate` with SDPA, padded, and of its batching."""
    if importlib.util.find_spec("transformers") is None:
        yield {"what": "transformers", "skipped": "transformers is not installed"}
        return
    import transformers

    sizes, place = bench.sizes, bench.device.place
    config = transformers.AutoConfig.from_pretrained(folder)
    torch.manual_seed(0)
    with place:
        model = transformers.AutoModelForCausalLM.from_config(
            config, dtype=torch.bfloat16, attn_implementation="sdpa"
        ).eval()
    settings = transformers.GenerationConfig(
        max_new_tokens=sizes.num_peer_tokens, do_sample=False, eos_token_id=-1, pad_token_id=0
    )
    batching = transformers.ContinuousBatchingConfig(**sizes.batching_settings)

    def generate(prompts: Prompts) -> int:
        ids = torch.tensor(prompts, device=place)
        generated = model.generate(ids, generation_config=settings)
        return int(generated[:, sizes.prompt_tokens :].numel())

    def batch(prompts: Prompts) -> int:
        results = model.generate_batch(
            inputs=prompts,
            generation_config=settings,
            continuous_batching_config=batching,
            persistent_manager=True,
        )
        return sum(len(result.generated_tokens) for result in results.values())

    yield _timed(bench, f"{folder.name} transformers generate, SDPA", generate)
    yield _timed(bench, f"{folder.name} transformers continuous batching", batch)
    model.destroy_cached_continuous_batching_manager()


def measure_vllm(bench: Bench, folder: Path) -> Rows:
    """Yield vLLM's output tokens per second on the same requests."""
    name = f"{folder.name} vLLM"
    if importlib.util.find_spec("vllm") is None:
        yield {"what": name, "skipped": "vLLM is not installed"}
        return
    import vllm

    sizes = bench.sizes
    llm = vllm.LLM(
        str(folder),
        load_format="dummy",
        skip_tokenizer_init=True,
        max_model_len=sizes.prompt_tokens + sizes.num_peer_tokens,
        enable_prefix_caching=False,
    )
    params = vllm.SamplingParams(
        temperature=0, max_tokens=sizes.num_peer_tokens, ignore_eos=True, detokenize=False
    )

    def generate(prompts: Prompts) -> int:
        tokens = [vllm.TokensPrompt(prompt_token_ids=prompt) for prompt in prompts]
        outputs = llm.generate(tokens, params, use_tqdm=False)
        return sum(len(output.outputs[0].token_ids) for output in outputs)

    yield _timed(bench, name, generate)


def _timed(bench: Bench, what: str, generate: Callable[[Prompts], int]) -> Row:
    """Run it twice, since the first time it compiles and records, and time the second time."""
    sizes = bench.sizes
    count = sizes.num_peer_requests
    try:
        generate(sizes.prompts(count, first=count))
        bench.device.synchronize()
        started = time.perf_counter()
        num_tokens = generate(sizes.prompts(count))
        bench.device.synchronize()
        wall_s = time.perf_counter() - started
    except Exception as error:  # noqa: BLE001  a peer that fails is a line of the table
        return {"what": what, "error": repr(error)[:200]}
    row: Row = {"what": what, "s": wall_s, "tokens/s": num_tokens / wall_s}
    expected = count * sizes.num_peer_tokens
    return row if num_tokens == expected else {**row, "error": f"{num_tokens} of {expected} tokens"}
