"""A worker for the comparison: transformers in this process.

`padded` is plain generate over left-padded batches, the next batch when the longest sequence of
this one has ended. `continuous` is its own continuous batching, generate_batch.
"""

import json
import sys
import time
from typing import Any

import torch
from transformers import AutoModelForCausalLM, GenerationConfig
from transformers.generation.configuration_utils import ContinuousBatchingConfig

Asks = list[tuple[list[int], int]]

TIMEOUT_S = 3600.0


def run_padded(model: Any, asks: Asks, concurrency: int) -> int:
    """Batches of `concurrency`, as a server with batch-level scheduling would run them."""
    for start in range(0, len(asks), concurrency):
        batch = asks[start : start + concurrency]
        width = max(len(prompt) for prompt, _ in batch)
        ids = torch.zeros(len(batch), width, dtype=torch.long)
        mask = torch.zeros(len(batch), width, dtype=torch.long)
        for row, (prompt, _) in enumerate(batch):
            ids[row, width - len(prompt) :] = torch.tensor(prompt)
            mask[row, width - len(prompt) :] = 1
        num_tokens = max(max_tokens for _, max_tokens in batch)
        output = model.generate(
            ids, attention_mask=mask, do_sample=False, max_new_tokens=num_tokens,
            min_new_tokens=num_tokens,
        )  # fmt: skip
        assert output.shape[1] == width + num_tokens
    return sum(max_tokens for _, max_tokens in asks)  # the rest is of no use to anybody


def run_continuous(model: Any, asks: Asks, concurrency: int) -> int:
    """transformers' own paged continuous batching, `concurrency` sequences at once."""
    config = GenerationConfig(do_sample=False, eos_token_id=-1, pad_token_id=0, max_new_tokens=1)
    paging = ContinuousBatchingConfig(
        num_blocks=128, max_batch_tokens=2048, max_requests_per_batch=concurrency
    )
    with model.continuous_batching_context_manager(
        generation_config=config, continuous_batching_config=paging
    ) as manager:
        for prompt, max_tokens in asks:
            manager.add_request(prompt, max_new_tokens=max_tokens)
        produced = 0
        for _ in asks:
            result = manager.get_result(timeout=TIMEOUT_S)
            assert result is not None, "continuous batching gave up"
            produced += len(result.generated_tokens)
    return produced


def main() -> None:
    """Load the model, then run jobs from standard input."""
    way, folder, dtype = sys.argv[1:]
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=getattr(torch, dtype), attn_implementation="sdpa"
    )
    model.generation_config.eos_token_id = None
    run = run_padded if way == "padded" else run_continuous
    # Continuous batching writes its buffers from a thread that is not in inference mode.
    with torch.inference_mode() if way == "padded" else torch.no_grad():
        run(model, [([1000] * 8, 4)], 1)
        print(json.dumps({"ready": True}), flush=True)
        for line in sys.stdin:
            job = json.loads(line)
            started = time.perf_counter()
            num_tokens = run(model, job["asks"], job["concurrency"])
            wall_s = time.perf_counter() - started
            print(json.dumps({"wall_s": wall_s, "num_tokens": num_tokens}), flush=True)


if __name__ == "__main__":
    main()
