"""Keeps the device busy: the next step is on its way before the tokens of the last are read."""

from collections.abc import Sequence

from engine.batch import Batch, SampledToken
from engine.executor import Executor, Submission
from engine.request import RequestStatus
from engine.scheduler import Scheduler


class StepPipeline:
    """Runs a scheduler's steps, one ahead where both can."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self._ahead: tuple[Batch, Submission] | None = None

    def step(self, scheduler: Scheduler) -> tuple[Batch, Sequence[SampledToken | None]]:
        """Return the next batch and its tokens; the scheduler, always the same, must have work."""
        batch, submission = self._take_ahead() or self._submit(scheduler, scheduler.schedule())
        if submission.can_be_followed:
            following = scheduler.schedule_ahead()
            if following is not None:
                self._ahead = self._submit(scheduler, following)
        return batch, submission.tokens()

    def _take_ahead(self) -> tuple[Batch, Submission] | None:
        """Return the step that is on its way, unless everybody in it has ended meanwhile."""
        ahead, self._ahead = self._ahead, None
        if ahead is None:
            return None
        batch, submission = ahead
        if any(s.request.status is RequestStatus.RUNNING for s in batch.requests):
            return ahead
        submission.tokens()
        return None

    def _submit(self, scheduler: Scheduler, batch: Batch) -> tuple[Batch, Submission]:
        assert batch.requests, "there is work but nothing can run"
        submission = self._executor.submit(batch)
        scheduler.submitted(batch)
        return batch, submission
