"""The one view of an engine that router, autoscaler, metrics and status page share."""

from dataclasses import dataclass
from enum import StrEnum


class EngineState(StrEnum):
    """Whether an engine takes requests."""

    STARTING = "starting"
    SERVING = "serving"
    DRAINING = "draining"


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSnapshot:
    """State of one engine between two steps. Counters count since the process started."""

    epoch: str
    """Names the engine process; a new one means all earlier state is gone."""
    sequence: int
    """Rises with every snapshot of an epoch."""
    state: EngineState = EngineState.SERVING
    block_size: int
    """Tokens in a block."""
    num_blocks: int
    num_free_blocks: int
    """Blocks that hold nothing of use."""
    num_evictable_blocks: int
    """Blocks that hold a cached prefix nobody uses at present."""
    num_waiting: int = 0
    num_running: int = 0
    num_queued_prefill_tokens: int = 0
    """Prompt tokens of waiting and running requests not computed yet."""
    num_steps: int = 0
    step_age_s: float = 0.0
    """Seconds since the last step ended or work arrived at an idle engine; 0 when idle."""
    step_limit_s: float = 60.0
    """At this age a step is held to hang."""
    step_time_s: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Fit of a step's seconds: constant, per running sequence, per prefill token."""
    num_preemptions: int = 0
    num_lost_tokens: int = 0
    """Computed tokens that preemptions threw away, unless their blocks were found again."""
    num_host_blocks: int = 0
    """Blocks of the host tier."""
    num_used_host_blocks: int = 0
    num_prompt_tokens: int = 0
    num_generated_tokens: int = 0
    num_cache_queried_tokens: int = 0
    """Prompt tokens looked up in the prefix cache."""
    num_cache_hit_tokens: int = 0
    max_model_len: int = 0
    max_num_seqs: int = 0

    @property
    def num_usable_blocks(self) -> int:
        """Blocks a new request may take."""
        return self.num_free_blocks + self.num_evictable_blocks
