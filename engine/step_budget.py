"""How much prefill a step may hold beside the decodes it runs.

Whoever streams waits for the whole step, so prefill is given a share of its time, not a number of
tokens: with a share s a step lasts 1 / (1 - s) times as long as it would without prefill.
"""

import math

from engine.config import Preset
from engine.step_time import StepTimeFit, StepWork

# 1 / (1 - 0.4) = 1.67: a long prompt stretches the gaps between tokens by two thirds.
_SHARE = 0.4
# One of so many steps goes without prefill, to know what a step takes without it.
_PROBE_PERIOD = 16
# Who waits sees nothing yet, who streams sees slower text: one of those weighs as many of these.
# Where requests keep coming, the share settles at what they need, and the weight decides how many
# wait meanwhile: with a small one many do, and the decodes run in small batches, which are dear.
_WEIGHT_OF_WAITING = 16
# Unless more wait than stream, a step lasts four times as long as without prefill at most.
_MAX_SHARE = 0.75


class StepBudget:
    """Limits prefill by what the preset wants."""

    def __init__(self, preset: Preset, step_time: StepTimeFit) -> None:
        self._preset = preset
        self._num_mixed_steps = 0
        self._step_time = step_time

    def prefill_s(self, decodes: StepWork, num_prefills: int, num_ahead: int = 0) -> float:
        """Return the seconds that prefill may add to a step.

        Args:
            decodes: the step without prefill.
            num_prefills: requests that still have a prompt to compute, waiting ones included.
            num_ahead: decodes of tenants that have been served more than the one whose turn it is:
                they give way to its prefill, as the prefills of theirs do.
        """
        num_decodes = decodes.num_decodes - num_ahead
        if not num_decodes or self._preset == Preset.THROUGHPUT:
            return math.inf
        share = _SHARE
        if self._preset == Preset.BALANCED and num_prefills > 1:
            # Besides the one that is served, who waits counts too.
            num_behind = num_prefills - 1
            if num_behind >= num_decodes:
                return math.inf
            weight = _WEIGHT_OF_WAITING * num_behind
            share = max(share, min(weight / (weight + num_decodes), _MAX_SHARE))
        self._num_mixed_steps = (self._num_mixed_steps + 1) % _PROBE_PERIOD
        if not self._num_mixed_steps:
            return 0.0
        # The share is one of the step with prefill, so what that takes anyway counts as decodes'.
        decode_s = self._step_time.predict(decodes) + self._step_time.mixed_s
        if decode_s <= 0:
            return math.inf  # nothing learned yet
        return decode_s * share / (1 - share)
