"""Keeps the device busy: the next step is on its way before the tokens of the last are read."""

from collections.abc import Callable, Sequence

from engine.batch import Batch, SampledToken
from engine.executor import Executor, Submission
from engine.request import RequestStatus
from engine.scheduler import Scheduler
from engine.step_time import StepWork, work_of


class StepPipeline:
    """Runs a scheduler's steps, one ahead where both can."""

    def __init__(self, executor: Executor, on_submit: Callable[[StepWork], None]) -> None:
        """Run on an executor; `on_submit` hears of every step before it begins."""
        self._executor = executor
        self._on_submit = on_submit
        self._ahead: tuple[Batch, StepWork, Submission] | None = None

    def step(
        self, scheduler: Scheduler, now: float
    ) -> tuple[Batch, StepWork, Sequence[SampledToken | None]]:
        """Return the next batch, what it computed and its tokens.

        The scheduler, always the same, must have work.
        """
        ahead = self._take_ahead()
        batch, work, submission = ahead or self._submit(scheduler, scheduler.schedule(now))
        if submission.can_be_followed:
            following = scheduler.schedule_ahead(now)
            if following is not None:
                self._ahead = self._submit(scheduler, following)
        return batch, work, submission.tokens()

    def _take_ahead(self) -> tuple[Batch, StepWork, Submission] | None:
        """Return the step that is on its way, unless everybody in it has ended meanwhile."""
        ahead, self._ahead = self._ahead, None
        if ahead is None:
            return None
        batch, _, submission = ahead
        if any(s.request.status is RequestStatus.RUNNING for s in batch.requests):
            return ahead
        submission.tokens()
        return None

    def _submit(self, scheduler: Scheduler, batch: Batch) -> tuple[Batch, StepWork, Submission]:
        assert batch.requests, "there is work but nothing can run"
        work = work_of(batch)
        self._on_submit(work)
        submission = self._executor.submit(batch)
        scheduler.submitted(batch)
        return batch, work, submission
