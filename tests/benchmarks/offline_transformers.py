"""Run one workload on transformers; print one JSON line.

`padded` is plain generate over left-padded batches, the next batch when the longest sequence of
this one has ended. `continuous` is its own continuous batching, generate_batch.
"""

import argparse
import json
import resource
import time
from typing import Any

import torch
from transformers import AutoModelForCausalLM, GenerationConfig
from transformers.generation.configuration_utils import ContinuousBatchingConfig

from tests.benchmarks.workload import WORKLOADS, Ask, Workload, make_asks


def run_padded(model: Any, workload: Workload, asks: list[Ask]) -> None:
    """Batches of `concurrency`, as a server with batch-level scheduling would run them."""
    for start in range(0, len(asks), workload.concurrency):
        batch = asks[start : start + workload.concurrency]
        width = max(len(ask.prompt_token_ids) for ask in batch)
        ids = torch.zeros(len(batch), width, dtype=torch.long)
        mask = torch.zeros(len(batch), width, dtype=torch.long)
        for row, ask in enumerate(batch):
            ids[row, width - len(ask.prompt_token_ids) :] = torch.tensor(ask.prompt_token_ids)
            mask[row, width - len(ask.prompt_token_ids) :] = 1
        num_tokens = max(ask.max_tokens for ask in batch)
        output = model.generate(
            ids, attention_mask=mask, do_sample=False, max_new_tokens=num_tokens,
            min_new_tokens=num_tokens,
        )  # fmt: skip
        assert output.shape[1] == width + num_tokens


def run_continuous(model: Any, workload: Workload, asks: list[Ask]) -> None:
    """transformers' own paged continuous batching, `concurrency` sequences at once."""
    config = GenerationConfig(do_sample=False, eos_token_id=-1, pad_token_id=0, max_new_tokens=1)
    paging = ContinuousBatchingConfig(
        num_blocks=128, max_batch_tokens=2048, max_requests_per_batch=workload.concurrency
    )
    with model.continuous_batching_context_manager(
        generation_config=config, continuous_batching_config=paging
    ) as manager:
        for ask in asks:
            manager.add_request(ask.prompt_token_ids, max_new_tokens=ask.max_tokens)
        produced = 0
        for _ in asks:
            result = manager.get_result(timeout=600)
            assert result is not None, "continuous batching gave up"
            produced += len(result.generated_tokens)
    assert produced == sum(ask.max_tokens for ask in asks), produced


def main() -> None:
    """Measure once, after a warm-up."""
    parser = argparse.ArgumentParser()
    parser.add_argument("mode", choices=["padded", "continuous"])
    parser.add_argument("model")
    parser.add_argument("workload")
    parser.add_argument("seed", type=int)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--num-requests", type=int)
    options = parser.parse_args()
    workload = WORKLOADS[options.workload]
    started = time.perf_counter()
    model = AutoModelForCausalLM.from_pretrained(
        options.model, dtype=getattr(torch, options.dtype), attn_implementation="sdpa"
    )
    model.generation_config.eos_token_id = None
    start_s = time.perf_counter() - started
    asks = make_asks(workload, vocab_size=49152, seed=options.seed)[: options.num_requests]
    run = run_padded if options.mode == "padded" else run_continuous
    # Continuous batching writes its buffers from a thread that is not in inference mode.
    with torch.inference_mode() if options.mode == "padded" else torch.no_grad():
        run(model, workload, [Ask(asks[0].prompt_token_ids[:8], 4)])
        cpu = time.process_time()
        started = time.perf_counter()
        run(model, workload, asks)
    wall_s = time.perf_counter() - started
    num_tokens = sum(ask.max_tokens for ask in asks)
    rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    result = {"tokens_per_s": num_tokens / wall_s, "start_s": start_s, "rss_bytes": rss}
    print(json.dumps(result | {"cpu_s_per_token": (time.process_time() - cpu) / num_tokens}))


if __name__ == "__main__":
    main()
