"""What a scheduler has done since it was made."""

from dataclasses import dataclass

from engine.request import Request


@dataclass(slots=True)
class SchedulerCounts:
    """Counters; see the fields of the same names in engine/snapshot.py."""

    num_preemptions: int = 0
    num_lost_tokens: int = 0
    num_prompt_tokens: int = 0
    num_generated_tokens: int = 0
    num_cache_queried_tokens: int = 0
    num_cache_hit_tokens: int = 0

    def admit(self, request: Request, *, looks_up: bool) -> None:
        """Count a prompt that begins; `looks_up`: whether the prefix cache was asked for it."""
        self.num_prompt_tokens += request.num_prompt_tokens
        if looks_up:
            self.num_cache_queried_tokens += request.num_prompt_tokens
            self.num_cache_hit_tokens += request.num_cached_tokens

    def preempt(self, request: Request, num_lost_tokens: int) -> None:
        """Count one whose blocks are taken back."""
        self.num_preemptions += 1
        self.num_lost_tokens += num_lost_tokens
        request.num_preemptions += 1
