"""A replica whose engine is ours and whose steps only take time."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from cluster.simulation.events import Events
from engine.batch import Batch, SampledToken
from engine.config import EngineConfig, Preset
from engine.core import EngineCore
from engine.errors import InvalidRequest, Overloaded
from engine.executor import Computed
from engine.output import StepOutput
from engine.request import GenerateRequest
from engine.snapshot import EngineSnapshot

MODEL_NAME: Final = "simulated"
_TOKEN: Final = SampledToken(0)
_VOCAB_SIZE: Final = 1 << 31  # prompts may have any id


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaModel:
    """What a simulated replica is: its memory and the seconds its steps take.

    A step takes constant_s, and for each sequence that decodes seq_s and kv_token_s for each token
    it reads, and for each token of prefill prefill_token_s. The defaults are an 8B model on one
    large GPU, roughly.
    """

    num_blocks: int = 28_800
    block_size: int = 16
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 2048
    preset: Preset = Preset.BALANCED
    constant_s: float = 0.012
    seq_s: float = 0.04e-3
    kv_token_s: float = 40e-9
    prefill_token_s: float = 0.16e-3
    speed: float = 1.0
    """2: everything takes half as long."""

    def step_s(self, batch: Batch) -> float:
        """Return the seconds that a batch takes."""
        seconds = self.constant_s
        for scheduled, start in zip(batch.requests, batch.starts, strict=True):
            if scheduled.num_scheduled_tokens == 1:
                seconds += self.seq_s + self.kv_token_s * start
            else:
                seconds += self.prefill_token_s * scheduled.num_scheduled_tokens
        return seconds / self.speed


@dataclass(frozen=True, slots=True)
class Admissions:
    """What became of requests that came since the last step, by their ids."""

    accepted: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    """Too many wait: they may go elsewhere, or come again."""
    invalid: list[str] = field(default_factory=list)
    """No engine of this size can serve them."""


_NONE_CAME: Final = Admissions()


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a replica tells after a step, as a frame of the token stream does."""

    replica_id: str
    output: StepOutput
    admissions: Admissions
    snapshot: EngineSnapshot

    @property
    def has_news(self) -> bool:
        """Whether anybody's first or last token came, or a request was turned away."""
        if self.admissions.refused or self.admissions.invalid:
            return True
        for output in self.output.outputs:
            if not output.index or output.finish_reason is not None:
                return True
        return False


class SimulatedReplica:
    """Steps while it has work; requests that come meanwhile wait for the step to end."""

    def __init__(
        self,
        replica_id: str,
        model: ReplicaModel,
        events: Events,
        on_step: Callable[[StepResult], None],
    ) -> None:
        self.replica_id = replica_id
        self._events = events
        self._on_step = on_step
        self._executor = _TimedExecutor(model)
        config = EngineConfig(
            model_path=Path("simulated"),
            model_name=MODEL_NAME,
            block_size=model.block_size,
            max_num_seqs=model.max_num_seqs,
            max_num_batched_tokens=model.max_num_batched_tokens,
            preset=model.preset,
        )
        self._core = EngineCore(
            config,
            self._executor,
            max_model_len=model.num_blocks * model.block_size,
            eos_token_ids=frozenset(),
            vocab_size=_VOCAB_SIZE,
            clock=lambda: events.now + self._executor.elapsed_s,
        )
        self._inbox: list[GenerateRequest] = []
        self._is_stepping = False
        self._is_dead = False

    def snapshot(self) -> EngineSnapshot:
        """Describe the engine as it is now."""
        return self._core.snapshot()

    def submit(self, request: GenerateRequest) -> None:
        """Take a request from the network."""
        self._inbox.append(request)
        if not self._is_stepping:
            self._step()

    def beat(self) -> None:
        """Tell how it is, where no step does."""
        if not self._is_stepping:
            self._tell(StepOutput([], 0, 0), _NONE_CAME)

    def kill(self) -> None:
        """Say nothing more."""
        self._is_dead = True

    def _step(self) -> None:
        """Take what has come and begin a step; its outputs are out when its time has passed."""
        admissions = self._admit()
        self._is_stepping = True
        output = self._core.step()
        elapsed_s, self._executor.elapsed_s = self._executor.elapsed_s, 0.0
        self._events.after(elapsed_s, lambda: self._end_step(output, admissions))

    def _admit(self) -> Admissions:
        if not self._inbox:
            return _NONE_CAME
        admissions = Admissions()
        for request in self._inbox:
            try:
                self._core.add(request)
            except Overloaded:
                admissions.refused.append(request.request_id)
            except InvalidRequest:
                admissions.invalid.append(request.request_id)
            else:
                admissions.accepted.append(request.request_id)
        self._inbox.clear()
        return admissions

    def _end_step(self, output: StepOutput, admissions: Admissions) -> None:
        if self._is_dead:
            return
        self._is_stepping = False
        self._tell(output, admissions)
        if self._inbox or self._core.has_work:
            self._step()

    def _tell(self, output: StepOutput, admissions: Admissions) -> None:
        self._on_step(StepResult(self.replica_id, output, admissions, self.snapshot()))


class _TimedExecutor:
    """Computes nothing and notes how long it would have taken."""

    num_host_blocks = 0

    def __init__(self, model: ReplicaModel) -> None:
        self.num_blocks = model.num_blocks
        self.elapsed_s = 0.0
        self._model = model

    def submit(self, batch: Batch) -> Computed:
        """Let the batch's time pass."""
        self.elapsed_s += self._model.step_s(batch)
        tokens: list[SampledToken | None] = [None] * len(batch.requests)
        for i in batch.wanting:
            tokens[i] = _TOKEN
        return Computed(tokens)

    def shutdown(self) -> None:
        """Nothing to release."""
