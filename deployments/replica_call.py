"""The unary Serve call that stands beside a request for as long as it runs.

By it Serve knows what is in flight, and it brings the request where the token stream did not.
"""

import asyncio
from typing import Any

from ray.serve.handle import DeploymentHandle

from cluster.messages import WireError
from engine.errors import Overloaded, PageRayError, ReplicaLost
from engine.request import GenerateRequest


class EngineFull(Overloaded):
    """An engine refused a request that the board saw room for; another may have some."""


async def hold_call(
    handle: DeploymentHandle[Any], frontend_id: str, request: GenerateRequest
) -> PageRayError | None:
    """Return once the engine has ended the request, or what came between; cancel it to abort."""
    response: Any = None
    try:
        response = handle.generate.remote(frontend_id, request)
        refusal: WireError | None = await response
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is not None and not task.cancelling():
            return lost("Serve has cancelled the call")
        if response is not None:
            response.cancel()
        raise
    except Exception as error:  # noqa: BLE001  a dead replica has many names in Ray and gRPC
        return lost(" ".join(str(error).strip().splitlines()[-1:]))
    reason = None if refusal is None else refusal.to_error()
    if isinstance(reason, ReplicaLost):
        return lost(reason.cause)
    if isinstance(reason, Overloaded):
        return EngineFull(*reason.args)
    return reason


def lost(reason: str) -> ReplicaLost:
    """What a client hears if no other replica could go on."""
    return ReplicaLost(
        f"the replica that worked on the request is gone: {reason}", "Send the request again."
    )
