"""What a request asks of a replica, whichever it is."""

import math
from dataclasses import dataclass
from typing import Final

from cluster.sessions import Session
from engine.request import GenerateRequest

WATERMARK: Final = 0.01
"""Share of the blocks that placement leaves alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestNeed:
    """Tokens and blocks that a request takes, and what a replica may have of it already."""

    request_id: str
    num_prompt_tokens: int
    """Output that it brings along included."""
    num_choices: int = 1
    max_tokens: int | None = None
    block_keys: tuple[int, ...] = ()
    """Of the prompt's full blocks, see cluster/prefix_index.py; empty: not known."""
    session_replica: str = ""
    """Where the last turn of its session was served; empty: not known."""
    num_session_tokens: int = 0
    """Of that turn: hoped to be cached there."""
    spare_share: float = WATERMARK
    """Share of a replica's blocks that it has to leave free."""

    @classmethod
    def of(
        cls,
        request: GenerateRequest,
        block_keys: tuple[int, ...] = (),
        session: Session | None = None,
    ) -> "RequestNeed":
        """The need of a request as it goes to the engine; `session`: its last turn."""
        num_prompt_tokens = len(request.prompt_token_ids) + request.num_emitted_tokens
        return cls(
            request_id=request.request_id,
            num_prompt_tokens=num_prompt_tokens,
            num_choices=request.num_live_choices,
            max_tokens=request.params.max_tokens,
            block_keys=block_keys,
            session_replica="" if session is None else session.replica_id,
            num_session_tokens=0 if session is None else min(session.num_tokens, num_prompt_tokens),
        )

    def num_blocks(self, block_size: float) -> int:
        """Blocks to hold the prompt and the first tokens of each choice."""
        return math.ceil(self.num_prompt_tokens / block_size) + self.num_choices
