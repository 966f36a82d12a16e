"""Loads a model with random weights, draws a token, ends at once and says what it took.

`python -m tests.benchmarks.gpu.first_token FOLDER SETTINGS`, which are JSON
"""

import json
import os
import sys
import time


def main() -> None:
    """Do it."""
    started = time.perf_counter()
    from engine import LLM, SamplingParams

    imported = time.perf_counter()
    folder, settings = sys.argv[1:]
    llm = LLM(folder, load_format="dummy", max_model_len=256, **json.loads(settings))
    loaded = time.perf_counter()
    llm.generate([[1, 2, 3]], SamplingParams(temperature=0, max_tokens=1, ignore_eos=True))
    answered = time.perf_counter()
    phases = {
        "import s": imported - started,
        "load s": loaded - imported,
        "token s": answered - loaded,
    }
    print(json.dumps(phases), flush=True)
    os._exit(0)  # what comes after the token is not measured


if __name__ == "__main__":
    main()
