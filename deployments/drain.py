"""Empties the frontends of an application before it stops."""

import time
from contextlib import suppress
from typing import Any, Final

from ray import serve
from ray.exceptions import RayActorError, RayError

from deployments.serve_peers import FRONTEND

LOOK_S: Final = 0.2
ANSWER_S: Final = 5.0


def drain(app_name: str, timeout_s: float) -> None:
    """Let the frontends answer what they have; Serve alone would stop the replicas beside them."""
    deadline = time.monotonic() + timeout_s
    frontends = serve.get_deployment_handle(FRONTEND, app_name)
    frontends._init(_run_router_in_separate_loop=True)  # the driver has no event loop of its own
    with suppress(RayError, RuntimeError):  # none is left to ask
        with suppress(KeyboardInterrupt):  # the second one cuts off
            while time.monotonic() < deadline and _close(frontends):
                time.sleep(LOOK_S)
        _close(frontends, turn_out=True)


def _close(frontends: Any, *, turn_out: bool = False) -> bool:
    """Let the frontends close; return whether anybody is still inside. Raises RayError."""
    try:
        # A handle knows of nobody before it has led a call to somebody.
        frontends.close.remote().result(timeout_s=ANSWER_S)
        answers = frontends.broadcast("close", turn_out=turn_out).results(
            timeout_s=ANSWER_S, return_exceptions=True
        )
    except TimeoutError:
        return True
    # One that does not answer may be busy with those who are inside; one that died is not.
    return any(answer != 0 and not isinstance(answer, RayActorError) for answer in answers)
