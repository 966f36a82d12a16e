"""Runs an EngineCore on a thread of its own.

Everyone else talks to the engine through an inbox that the thread empties between steps, so the
core needs no locks. The thread sleeps while there is nothing to do.
"""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, replace
from queue import Empty, SimpleQueue

from engine.core import EngineCore
from engine.errors import Overloaded, PageRayError, ReplicaLost
from engine.output import StepOutput, TokenOutput
from engine.request import GenerateRequest
from engine.snapshot import EngineSnapshot


@dataclass(frozen=True, slots=True)
class _Add:
    request: GenerateRequest
    admitted: Future[None]


@dataclass(frozen=True, slots=True)
class _Abort:
    request_id: str
    choice_index: int | None


@dataclass(frozen=True, slots=True)
class _Stop:
    pass


class EngineLoop:
    """The step thread and its inbox. All public methods may be called from any thread.

    Args:
        core: the loop owns it from `start` on and shuts it down in the end.
        on_step: called on the step thread after each step, and for the outputs of aborts. It
            must be quick: the engine stands still meanwhile.
        on_failure: called on the step thread with what a step (or `on_step`) raised. Live
            requests get no more outputs and the core is not shut down, because its ranks may
            be in any state: the process should end.
    """

    def __init__(
        self,
        core: EngineCore,
        *,
        on_step: Callable[[StepOutput, EngineSnapshot], None],
        on_failure: Callable[[BaseException], None],
    ) -> None:
        self._core = core
        self._on_step = on_step
        self._on_failure = on_failure
        self._inbox: SimpleQueue[_Add | _Abort | _Stop] = SimpleQueue()
        self._snapshot = core.snapshot()
        self._ended: PageRayError | None = None
        # Daemon: a forward pass that hangs must not keep the process alive.
        self._thread = threading.Thread(target=self._run, name="pageray-step", daemon=True)

    def start(self) -> None:
        """Start the step thread."""
        self._thread.start()

    def add(self, request: GenerateRequest) -> Future[None]:
        """Queue a request; the future is done when it is admitted, or holds why it is not.

        The first outputs may reach `on_step` before a waiter of the future wakes up. A future
        cancelled before admission keeps the request out.
        """
        admitted: Future[None] = Future()
        self._inbox.put(_Add(request, admitted))
        self._refuse_if_ended()
        return admitted

    def abort(self, request_id: str, choice_index: int | None = None) -> None:
        """End a request, or one choice of it; the outputs come through `on_step`."""
        self._inbox.put(_Abort(request_id, choice_index))

    def snapshot(self) -> EngineSnapshot:
        """Return the state after the last step, with the age and limit of the present step."""
        limit_s = self._core.step_limit_s  # first: the age must not be that of the step before
        return replace(self._snapshot, step_age_s=self._core.step_age_s, step_limit_s=limit_s)

    def stop(self, timeout_s: float | None = None) -> bool:
        """Abort what is live, shut the core down and end the thread.

        Returns whether the thread has ended, which takes the step under way to end.
        """
        if self._thread.ident is None:
            self._close()
            return True
        self._inbox.put(_Stop())
        if self._thread is not threading.current_thread():
            self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            while self._apply_inbox():
                if self._core.has_work:
                    self._publish(self._core.step())
            self._close()
        except BaseException as error:  # noqa: BLE001  handed on, not swallowed
            self._ended = ReplicaLost(f"The engine failed: {error!r}.", "Send the request again.")
            self._refuse_if_ended()
            self._on_failure(error)

    def _apply_inbox(self) -> bool:
        """Apply all that has arrived, waiting for something if idle; False: stop."""
        has_applied = False
        while True:
            try:
                message = self._inbox.get(block=not self._core.has_work)
            except Empty:
                if has_applied:  # the step to come may take long
                    self._snapshot = self._core.snapshot()
                return True
            has_applied = True
            match message:
                case _Add(request, admitted):
                    self._add(request, admitted)
                case _Abort(request_id, choice_index):
                    self._deliver(self._core.abort(request_id, choice_index))
                case _Stop():
                    return False

    def _add(self, request: GenerateRequest, admitted: Future[None]) -> None:
        if not admitted.set_running_or_notify_cancel():
            return
        try:
            self._core.add(request)
        except Exception as error:  # noqa: BLE001  the caller gets it; the core is unchanged
            admitted.set_exception(error)
        else:
            admitted.set_result(None)

    def _deliver(self, outputs: list[TokenOutput]) -> None:
        if outputs:
            self._publish(StepOutput(outputs, 0, 0))

    def _publish(self, output: StepOutput) -> None:
        self._snapshot = self._core.snapshot()
        self._on_step(output, self._snapshot)

    def _close(self) -> None:
        self._deliver(self._core.abort_all())
        self._ended = Overloaded("The engine is stopping.", "Send the request again.")
        self._refuse_if_ended()
        self._core.shutdown()

    def _refuse_if_ended(self) -> None:
        """Fail the adds left in the inbox.

        Whoever puts a message calls this afterwards, and the step thread calls it once it has
        set `_ended`: one of the two sees the other's write, so no future is ever lost.
        """
        if self._ended is None:
            return
        while True:
            try:
                message = self._inbox.get_nowait()
            except Empty:
                return
            if isinstance(message, _Add) and message.admitted.set_running_or_notify_cancel():
                message.admitted.set_exception(self._ended)
