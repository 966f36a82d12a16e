"""What one evaluation of the autoscaler sees, and how it travels: as numbers by name."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields

from engine.snapshot import EngineSnapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaDemand:
    """What the requests on one replica ask of it, and what it can do.

    Counters count since the replica started.
    """

    block_size: float = 0.0
    num_blocks: float = 0.0
    """0: the replica has not told anything yet."""
    num_used_blocks: float = 0.0
    """Neither free nor evictable."""
    num_waiting: float = 0.0
    num_running: float = 0.0
    num_queued_prefill_tokens: float = 0.0
    num_prefilled_tokens: float = 0.0
    """Counter of prompt tokens that no prefix cache had."""
    num_generated_tokens: float = 0.0
    """Counter."""
    max_num_seqs: float = 0.0
    """0: not known."""
    constant_s: float = 0.0
    """Of the engine's fit of a step's seconds, as are the two that follow; 0: not learned yet."""
    seq_s: float = 0.0
    prefill_token_s: float = 0.0
    cold_start_s: float = 0.0
    """Seconds that its start took; 0: not known."""
    num_held_requests: float = 0.0
    """Requests that frontends hold since no replica has room; all of them, so that every replica
    tells the same."""
    num_held_tokens: float = 0.0
    """Their prompt tokens."""
    ttft_attainment: float = 1.0
    """Share of the last minute's requests, of all frontends, whose first token came in time."""

    @classmethod
    def from_metrics(cls, metrics: Mapping[str, float]) -> "ReplicaDemand":
        """Read it from numbers by name; others are passed over, missing ones have defaults."""
        names = {field.name for field in fields(cls)}
        return cls(**{name: value for name, value in metrics.items() if name in names})

    @property
    def num_needed_blocks(self) -> float:
        """Blocks in use and blocks that queued prompts will take."""
        return (
            self.num_used_blocks
            + -(-self.num_queued_prefill_tokens // self.block_size)
            + self.num_waiting
        )


def metrics_of(snapshot: EngineSnapshot, *, cold_start_s: float = 0.0) -> dict[str, float]:
    """Numbers by name that `ReplicaDemand.from_metrics` reads."""
    told = asdict(snapshot)
    same = {field.name for field in fields(ReplicaDemand)} & told.keys()
    constant_s, seq_s, prefill_token_s = snapshot.step_time_s
    return {name: float(told[name]) for name in same} | {
        "num_used_blocks": float(snapshot.num_blocks - snapshot.num_usable_blocks),
        "num_prefilled_tokens": float(snapshot.num_prompt_tokens - snapshot.num_cache_hit_tokens),
        "constant_s": constant_s,
        "seq_s": seq_s,
        "prefill_token_s": prefill_token_s,
        "cold_start_s": cold_start_s,
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class ScalingInput:
    """All that one evaluation sees."""

    now_s: float
    replicas: Mapping[str, ReplicaDemand]
    """What those that serve told last, by id; one may be missing that has told nothing yet."""
    num_serving: int
    num_target: int
    """Replicas that serve or are starting: what was decided before."""
    min_replicas: int
    max_replicas: int
    num_queued_requests: float = 0.0
    """Requests that wait outside of replicas and of the frontends' own queues."""

    @property
    def known(self) -> Sequence[ReplicaDemand]:
        """What there is to judge by."""
        return [one for one in self.replicas.values() if one.num_blocks > 0 and one.block_size > 0]

    @property
    def num_starting(self) -> int:
        """Replicas that are ordered and do not serve yet."""
        return max(0, self.num_target - self.num_serving)

    @property
    def num_held_requests(self) -> float:
        """Requests that no replica has yet."""
        held = max((one.num_held_requests for one in self.known), default=0.0)
        return held + self.num_queued_requests

    @property
    def num_held_tokens(self) -> float:
        """Prompt tokens of those that frontends hold."""
        return max((one.num_held_tokens for one in self.known), default=0.0)

    @property
    def ttft_attainment(self) -> float:
        """Share of the last minute's requests whose first token came in time."""
        return min((one.ttft_attainment for one in self.known), default=1.0)

    @property
    def cold_start_s(self) -> float:
        """Longest start of a replica that is there; 0: not known."""
        return max((one.cold_start_s for one in self.known), default=0.0)

    @property
    def has_requests(self) -> bool:
        """Whether anybody waits for anything now."""
        return self.num_held_requests > 0 or any(
            one.num_running or one.num_waiting for one in self.known
        )
