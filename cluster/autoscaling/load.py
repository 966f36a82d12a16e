"""What is asked of a deployment, in replicas."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from cluster.autoscaling.demand import ReplicaDemand, ScalingInput
from cluster.autoscaling.rates import TokenRates

COMPUTE_SHARE: Final = 0.8
"""Of what a replica computes in a second at most, what it should be asked for."""
KV_SHARE: Final = 0.75
"""Share of its blocks that a replica should have in use."""
DRAIN_S: Final = 20.0
"""A backlog of prompts should be worked off in this time."""
TPOT_S: Final = 0.1
"""A batch in which an output token takes longer is too large."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """Replicas that each thing asks for; 0 where nothing is known of it."""

    prefill: float = 0.0
    """To compute the prompts that come, and those that wait within DRAIN_S."""
    decode: float = 0.0
    kv: float = 0.0
    """To hold all requests in KV_SHARE of the blocks."""
    seats: float = 0.0
    """To run all requests at once."""
    num_needed_blocks: float = 0.0
    """Of all requests, held ones included."""
    num_blocks: float = 0.0
    """Of one replica."""

    @classmethod
    def of(cls, given: ScalingInput, rates: TokenRates) -> "Load":
        """Return what is asked for now."""
        known = given.known
        num_blocks = _mean(known, lambda one: one.num_blocks)
        block_size = _mean(known, lambda one: one.block_size)
        if not num_blocks or not block_size:
            return cls()
        held_blocks = given.num_held_tokens / block_size + given.num_held_requests
        needed = sum(one.num_needed_blocks for one in known) + held_blocks
        num_seqs = sum(one.num_running + one.num_waiting for one in known)
        seats = _mean(known, lambda one: one.max_num_seqs)
        backlog = sum(one.num_queued_prefill_tokens for one in known) + given.num_held_tokens
        prefill_per_s = _mean(known, _prefill_per_s)
        decode_per_s = _mean(known, _decode_per_s)
        asked = rates.prefill_per_s / COMPUTE_SHARE + backlog / DRAIN_S
        return cls(
            prefill=_ratio(asked, prefill_per_s),
            decode=_ratio(rates.decode_per_s, COMPUTE_SHARE * decode_per_s),
            kv=needed / (KV_SHARE * num_blocks),
            seats=_ratio(num_seqs + given.num_held_requests, seats),
            num_needed_blocks=needed,
            num_blocks=num_blocks,
        )

    @property
    def num_replicas(self) -> float:
        """What asks for most asks for so many. Prompts and output share the steps, so they add."""
        return max(self.prefill + self.decode, self.kv, self.seats)

    def kv_share(self, num_replicas: int) -> float:
        """Share of the blocks in use if so many replicas had all requests."""
        if not self.num_needed_blocks:
            return 0.0
        return _ratio(self.num_needed_blocks, self.num_blocks * num_replicas, math.inf)


def _prefill_per_s(one: ReplicaDemand) -> float:
    return _ratio(1.0, one.prefill_token_s)


def _decode_per_s(one: ReplicaDemand) -> float:
    """Output tokens per second of the largest batch whose steps take no longer than TPOT_S."""
    if not (one.constant_s or one.seq_s) or not one.max_num_seqs:
        return 0.0
    in_time = _ratio(TPOT_S - one.constant_s, one.seq_s, math.inf)
    num_seqs = max(1.0, min(one.max_num_seqs, in_time))
    return num_seqs / (one.constant_s + num_seqs * one.seq_s)


def _mean(known: Sequence[ReplicaDemand], number: Callable[[ReplicaDemand], float]) -> float:
    """Mean over those that know it; 0 if none does."""
    values = [value for one in known if (value := number(one)) > 0]
    return sum(values) / len(values) if values else 0.0


def _ratio(dividend: float, divisor: float, otherwise: float = 0.0) -> float:
    return dividend / divisor if divisor > 0 else otherwise
