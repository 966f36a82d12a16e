"""A generation that a new engine makes before anybody relies on it."""

from typing import Final

from engine.core import EngineCore
from engine.errors import PageRayError
from engine.output import FinishReason
from engine.request import GenerateRequest
from engine.sampling_params import SamplingParams

REQUEST_ID: Final = "canary"
MAX_PROMPT_TOKENS: Final = 4
MAX_NEW_TOKENS: Final = 4


class CanaryDied(PageRayError):
    """The engine came up and cannot generate."""


def run_canary(core: EngineCore) -> None:
    """Generate a few tokens on all ranks: prefill, decode, sampling and collectives must work.

    Raises CanaryDied when the tokens are not as many as they should be, or whatever a step raises.
    """
    room = core.max_model_len
    num_prompt_tokens = min(MAX_PROMPT_TOKENS, room - 1)
    num_new_tokens = min(MAX_NEW_TOKENS, room - num_prompt_tokens)
    params = SamplingParams(temperature=0.0, max_tokens=num_new_tokens, ignore_eos=True)
    core.add(
        GenerateRequest(
            request_id=REQUEST_ID, prompt_token_ids=[0] * num_prompt_tokens, params=params
        )
    )
    outputs = []
    while core.has_work:
        outputs += core.step().outputs
    num_tokens = sum(len(output.token_ids) for output in outputs)
    reasons = [output.finish_reason for output in outputs if output.finish_reason is not None]
    if num_tokens != num_new_tokens or reasons != [FinishReason.LENGTH]:
        raise CanaryDied(
            f"the engine made {num_tokens} tokens of {num_new_tokens} and ended with {reasons}.",
            "See the log of its ranks; other weights, --dtype or --device may work.",
        )
