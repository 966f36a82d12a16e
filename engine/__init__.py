"""One model on one tensor-parallel group: scheduler, block pool, forward pass, sampling.

Knows nothing of Ray or HTTP. `from engine import LLM, SamplingParams` is the offline API.
"""

from typing import TYPE_CHECKING, Any

from engine.sampling_params import SamplingParams

if TYPE_CHECKING:
    from engine.llm import LLM

__all__ = ["LLM", "SamplingParams"]


def __getattr__(name: str) -> Any:
    # LLM brings torch; the processes that only pass messages must not pay for that import.
    if name == "LLM":
        from engine.llm import LLM  # noqa: PLC0415  deferred on purpose, see above

        return LLM
    raise AttributeError(f"module 'engine' has no attribute {name!r}")
