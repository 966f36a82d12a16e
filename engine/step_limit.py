"""When a step is held to hang: far beyond what its like have taken."""

from typing import Final

from engine.step_time import StepTimeFit, StepWork

MIN_LIMIT_S: Final = 4.0
"""Nothing less is a hang: machines are busy, and suspended now and then."""
UNKNOWN_LIMIT_S: Final = 60.0
"""Of a step like none before it; a first one may compile kernels."""
MAX_SURPRISE: Final = 10.0
"""Times the time that was predicted."""
_NUM_LEARNING_STEPS: Final = 20
_MAX_GROWTH: Final = 2
"""A step with so many times the prefill of any before it is like none of them."""


class StepLimit:
    """Belongs to the step thread; `seconds` may be read from any."""

    def __init__(self, step_time: StepTimeFit) -> None:
        self.seconds = UNKNOWN_LIMIT_S
        """That the step under way may take."""
        self._step_time = step_time
        self._last_s = 0.0
        self._num_steps = 0
        self._most_prefill_tokens = 0

    def begin(self, work: StepWork) -> None:
        """A step begins, while the one before it may still be under way."""
        is_known = (
            self._num_steps >= _NUM_LEARNING_STEPS
            and work.num_prefill_tokens <= _MAX_GROWTH * self._most_prefill_tokens
        )
        least_s = MIN_LIMIT_S if is_known else UNKNOWN_LIMIT_S
        limit_s = max(least_s, MAX_SURPRISE * self._step_time.predict(work))
        self._last_s, self.seconds = limit_s, max(self._last_s, limit_s)

    def end(self, work: StepWork) -> None:
        """It has ended, and the fit has learned from it."""
        self._num_steps += 1
        self._most_prefill_tokens = max(self._most_prefill_tokens, work.num_prefill_tokens)
