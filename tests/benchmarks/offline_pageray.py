"""A worker for the comparison: PageRay's engine in this process."""

import json
import sys
import time

from engine import LLM, SamplingParams


def main() -> None:
    """Load the model, then run jobs from standard input."""
    model, dtype, max_num_seqs, kv_cache_gib = sys.argv[1:]
    kv_cache_bytes = int(kv_cache_gib) * 2**30
    with LLM(
        model, dtype=dtype, max_num_seqs=int(max_num_seqs), kv_cache_bytes=kv_cache_bytes
    ) as llm:
        warm_up = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
        llm.generate([[1000 + i] * 64 for i in range(8)], warm_up)
        print(json.dumps({"ready": True}), flush=True)
        for line in sys.stdin:
            asks = json.loads(line)["asks"]
            params = [
                SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True)
                for _, max_tokens in asks
            ]
            started = time.perf_counter()
            generations = llm.generate([prompt for prompt, _ in asks], params)
            wall_s = time.perf_counter() - started
            num_tokens = sum(len(generation.choices[0].token_ids) for generation in generations)
            print(json.dumps({"wall_s": wall_s, "num_tokens": num_tokens}), flush=True)


if __name__ == "__main__":
    main()
