"""llama.cpp: its server, and its own batched benchmark for offline."""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from tests.benchmarks.batched_bench import BatchedBench
from tests.benchmarks.cpu import has_bfloat16, num_cores
from tests.benchmarks.failure import PeerUnavailable
from tests.benchmarks.http_session import Launch, open_http
from tests.benchmarks.llama_build import SOURCE, LlamaBuild
from tests.benchmarks.server import HOST
from tests.benchmarks.systems.system import MODEL_NAME, Mode, Session
from tests.benchmarks.workload import WARM_UP, Ask, Workload

TYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16", "q8_0": "Q8_0", "q4_1": "Q4_1"}
SPARE_TOKENS = 32
"""In each slot, beyond the longest sequence."""


class LlamaCpp:
    """The peer to beat at one sequence: a single C++ process without a GIL."""

    name = "llama.cpp"

    def __init__(self, dtype: str | None, warm_up: list[Ask], store: Path) -> None:
        self.dtype = dtype or ("bfloat16" if has_bfloat16() else "float32")
        self._warm_up = warm_up
        self._build = LlamaBuild(store / "llama.cpp")

    def prepare(self) -> str:
        """Compile it."""
        if self.dtype not in TYPES:
            raise PeerUnavailable(f"llama.cpp has no type {self.dtype}; it has {', '.join(TYPES)}")
        self._build.prepare(TYPES[self.dtype])
        return SOURCE

    def keeps_running(self, mode: Mode) -> bool:
        """Slots and their length are fixed at the start, which takes a second."""
        return False

    def open(
        self, mode: Mode, workload: Workload, limit_s: float
    ) -> AbstractContextManager[Session]:
        """Start it with one slot for each request at once."""
        threads = str(num_cores())
        model = ["-m", str(self._build.gguf(TYPES[self.dtype])), "-t", threads, "-tb", threads]
        if mode is Mode.OFFLINE:
            if workload.mixed or workload.shared_tokens:
                raise PeerUnavailable("llama-batched-bench has no such workload")
            command = [self._build.program("llama-batched-bench"), *model]
            return nullcontext(BatchedBench(command, limit_s))
        num_slots = max(workload.concurrency, 1)
        slot_tokens = max(workload.context_tokens, WARM_UP.context_tokens) + SPARE_TOKENS
        command = [self._build.program("llama-server"), *model, "-a", MODEL_NAME, "--no-webui"]
        command += ["-np", str(num_slots), "-c", str(num_slots * slot_tokens), "--no-kv-unified"]
        command += ["--host", HOST, "--port", "{port}"]
        return open_http(Launch(command), self._warm_up, limit_s)
