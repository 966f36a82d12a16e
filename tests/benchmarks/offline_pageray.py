"""Run one workload on PageRay's offline engine; print one JSON line."""

import argparse
import json
import resource
import statistics
import time

from engine import LLM, SamplingParams
from tests.benchmarks.workload import WORKLOADS, Ask, make_asks


def main() -> None:
    """Measure once, after a warm-up request."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("workload")
    parser.add_argument("seed", type=int)
    options = parser.parse_args()
    workload = WORKLOADS[options.workload]
    started = time.perf_counter()
    with LLM(options.model, max_num_seqs=workload.concurrency) as llm:
        start_s = time.perf_counter() - started
        asks = make_asks(workload, vocab_size=49152, seed=options.seed)
        params = [
            SamplingParams(temperature=0, max_tokens=ask.max_tokens, ignore_eos=True)
            for ask in asks
        ]
        llm.generate([asks[0].prompt_token_ids[:8]], SamplingParams(temperature=0, max_tokens=4))
        first_token_s = [time_first_token(llm, ask) for ask in asks[:5]]
        cpu = time.process_time()
        started = time.perf_counter()
        generations = llm.generate([ask.prompt_token_ids for ask in asks], params)
        wall_s = time.perf_counter() - started
        cpu_s = time.process_time() - cpu
    num_tokens = sum(len(generation.choices[0].token_ids) for generation in generations)
    assert num_tokens == sum(ask.max_tokens for ask in asks)
    rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    result = {"tokens_per_s": num_tokens / wall_s, "start_s": start_s, "rss_bytes": rss}
    result |= {"cpu_s_per_token": cpu_s / num_tokens, "ttft_s": statistics.median(first_token_s)}
    print(json.dumps(result))


def time_first_token(llm: LLM, ask: Ask) -> float:
    """Seconds to the first token of an engine that does nothing else. Leaves no prefix behind."""
    prompt = [token_id ^ 1 for token_id in ask.prompt_token_ids]
    started = time.perf_counter()
    llm.generate([prompt], SamplingParams(temperature=0, max_tokens=1))
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
