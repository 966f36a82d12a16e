"""The offline API: one model in this process, without Ray."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, cast

from engine.build import build_core
from engine.compute_threads import caller_unmoved
from engine.config import EngineConfig
from engine.core import EngineCore
from engine.errors import InvalidConfig, InvalidRequest
from engine.generation import Generation, GenerationRun, Progress
from engine.model_folder import TOKENIZER_NAME
from engine.model_store import resolve_model
from engine.parallel import TensorParallel
from engine.progress import Report
from engine.request import GenerateRequest
from engine.sampling_params import SamplingParams
from engine.tokenizer import Tokenizer

DEFAULT_CACHE_DIR = Path("~/.cache/pageray")

Prompt = str | list[int]
Messages = list[dict[str, Any]]


class LLM:
    """A model that answers lists of prompts. Use it from one thread at a time.

    Steps run in the caller's thread; Ctrl-C ends the call and leaves the model usable.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        cache_dir: Path = DEFAULT_CACHE_DIR,
        report: Report | None = None,
        **settings: Any,
    ) -> None:
        """Find or fetch the model and load it.

        Args:
            model: folder, GGUF file, hub id, or "smollm2".
            cache_dir: where fetched models are kept.
            report: told how far fetching and loading have come.
            settings: fields of EngineConfig.

        Raises ModelNotFound, InvalidModel, InvalidConfig.
        """
        num_ranks = settings.get("tensor_parallel_size", 1)
        if num_ranks != 1:
            raise InvalidConfig(
                f"LLM runs in one process, and tensor_parallel_size is {num_ranks}.",
                f"Use `pageray serve --tensor-parallel-size {num_ranks}`: Ray starts the ranks.",
            )
        config = EngineConfig(model_path=Path(model), model_name=str(model), **settings)
        path = resolve_model(
            str(model),
            cache_dir=cache_dir.expanduser(),
            report=report,
            needs_weights=config.needs_weights,
        )
        config = replace(config, model_path=path)
        self.tokenizer = _tokenizer(config)
        self._core: EngineCore | None = build_core(config, TensorParallel.single(), report)

    def generate(
        self,
        prompts: str | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        progress: Progress | None = None,
    ) -> list[Generation]:
        """Complete prompts, all at once; the results are in their order.

        Args:
            prompts: texts, to which the tokenizer adds its special tokens, or token ids.
            params: for all prompts, or one for each.
            progress: called whenever a prompt is finished.

        Raises InvalidRequest, PromptTooLong; then none of the prompts is left running.
        """
        if isinstance(prompts, str):
            prompts = [prompts]
        encode = self.tokenizer.encode
        token_ids = [encode(p) if isinstance(p, str) else list(p) for p in prompts]
        return self._run(token_ids, params, progress)

    def chat(
        self,
        messages: Messages | Sequence[Messages],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        progress: Progress | None = None,
    ) -> list[Generation]:
        """Answer one conversation or several, rendered with the model's chat template."""
        token_ids = [
            self.tokenizer.encode(self.tokenizer.render_chat(c), add_special_tokens=False)
            for c in _conversations(messages)
        ]
        return self._run(token_ids, params, progress)

    def close(self) -> None:
        """Free the model; the object is of no use afterwards."""
        core, self._core = self._core, None
        if core is not None:
            core.shutdown()

    def __enter__(self) -> "LLM":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _run(
        self,
        prompts: list[list[int]],
        params: SamplingParams | Sequence[SamplingParams] | None,
        progress: Progress | None,
    ) -> list[Generation]:
        if self._core is None:
            raise RuntimeError("this LLM is closed")
        requests = [
            GenerateRequest(request_id=str(i), prompt_token_ids=prompt, params=own)
            for i, (prompt, own) in enumerate(
                zip(prompts, _params_of_each(params, len(prompts)), strict=True)
            )
        ]
        with caller_unmoved():
            return GenerationRun(self._core, self.tokenizer, requests, progress).run()


def _tokenizer(config: EngineConfig) -> Tokenizer:
    """Read the model's tokenizer; random weights need none, as their tokens say nothing."""
    if not config.needs_weights and not (config.model_path / TOKENIZER_NAME).is_file():
        return Tokenizer.without_tokens()
    return Tokenizer.from_folder(config.model_path)


def _params_of_each(
    params: SamplingParams | Sequence[SamplingParams] | None, num_prompts: int
) -> Sequence[SamplingParams]:
    if params is None:
        params = SamplingParams()
    if isinstance(params, SamplingParams):
        return [params] * num_prompts
    if len(params) != num_prompts:
        raise InvalidRequest(
            f"There are {num_prompts} prompts and {len(params)} params.",
            "Pass one SamplingParams for all prompts, or one for each.",
            param="params",
        )
    return params


def _conversations(messages: Messages | Sequence[Messages]) -> Sequence[Messages]:
    if messages and isinstance(messages[0], dict):
        return [cast("Messages", messages)]
    return cast("Sequence[Messages]", messages)
