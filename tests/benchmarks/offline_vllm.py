"""A worker for the comparison: vLLM's engine. Runs in vLLM's own environment, without PageRay."""

import json
import sys
import time

from vllm import LLM, SamplingParams, TokensPrompt


def run(llm: LLM, asks: list[tuple[list[int], int]], concurrency: int) -> int:
    """Keep `concurrency` requests in the engine until all are done; return the tokens made."""
    engine = llm.llm_engine
    waiting = list(enumerate(asks))
    running = num_tokens = 0
    while waiting or running:
        while waiting and running < concurrency:
            number, (prompt, max_tokens) = waiting.pop(0)
            params = SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True)
            tokens = TokensPrompt(prompt_token_ids=prompt)
            engine.add_request(f"{time.monotonic_ns()}-{number}", tokens, params)
            running += 1
        for output in engine.step():
            if output.finished:
                running -= 1
                num_tokens += len(output.outputs[0].token_ids)
    return num_tokens


def main() -> None:
    """Load the model, then run jobs from standard input."""
    model, dtype, max_model_len = sys.argv[1:]
    llm = LLM(model, dtype=dtype, max_model_len=int(max_model_len), disable_log_stats=True)
    run(llm, [([1000 + i] * 64, 8) for i in range(8)], concurrency=4)
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        job = json.loads(line)
        started = time.perf_counter()
        num_tokens = run(llm, job["asks"], job["concurrency"])
        wall_s = time.perf_counter() - started
        print(json.dumps({"wall_s": wall_s, "num_tokens": num_tokens}), flush=True)


if __name__ == "__main__":
    main()
