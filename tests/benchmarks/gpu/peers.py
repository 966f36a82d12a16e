"""The same shapes in transformers and, where it is installed, vLLM."""

import importlib.util
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

_NUM_REQUESTS = 64
_PROMPT = 128
_OUTPUT = 128


def measure_transformers(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield output tokens per second of `generate` with SDPA, padded, and of its batching."""
    if importlib.util.find_spec("transformers") is None:
        yield {"what": "transformers", "skipped": "transformers is not installed"}
        return
    import transformers

    config = transformers.AutoConfig.from_pretrained(folder)
    torch.manual_seed(0)
    with torch.device("cuda"):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
    settings = transformers.GenerationConfig(
        max_new_tokens=_OUTPUT, do_sample=False, eos_token_id=-1, pad_token_id=0
    )
    prompts = torch.randint(1, 1000, (_NUM_REQUESTS, _PROMPT), device="cuda")
    for way in ("generate, SDPA", "continuous batching"):
        name = f"{folder.name} transformers {way}"
        try:
            model.generate(prompts[:2], generation_config=settings)
            started = time.perf_counter()
            if way == "continuous batching":
                results = model.generate_batch(inputs=prompts.tolist(), generation_config=settings)
                num_tokens = sum(len(result.generated_tokens) for result in results.values())
            else:
                generated = model.generate(prompts, generation_config=settings)
                num_tokens = generated[:, _PROMPT:].numel()
            torch.cuda.synchronize()
            yield {"what": name, "tokens/s": num_tokens / (time.perf_counter() - started)}
        except Exception as error:  # noqa: BLE001  a peer that fails is a line of the table
            yield {"what": name, "skipped": repr(error)[:200]}
    del model
    torch.cuda.empty_cache()


def measure_vllm(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield vLLM's output tokens per second on the same requests."""
    name = f"{folder.name} vLLM"
    if importlib.util.find_spec("vllm") is None:
        yield {"what": name, "skipped": "vLLM is not installed"}
        return
    import vllm

    llm = vllm.LLM(str(folder), load_format="dummy", skip_tokenizer_init=True, max_model_len=2048)
    params = vllm.SamplingParams(
        temperature=0, max_tokens=_OUTPUT, ignore_eos=True, detokenize=False
    )
    prompts = [
        vllm.TokensPrompt(prompt_token_ids=[1 + (i * 7 + k) % 1000 for k in range(_PROMPT)])
        for i in range(_NUM_REQUESTS)
    ]
    llm.generate(prompts[:2], params)
    started = time.perf_counter()
    outputs = llm.generate(prompts, params)
    num_tokens = sum(len(output.outputs[0].token_ids) for output in outputs)
    yield {"what": name, "tokens/s": num_tokens / (time.perf_counter() - started)}
