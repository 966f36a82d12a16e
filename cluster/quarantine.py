"""Requests that have cost two replicas their lives, and must not have a third."""

import logging
from collections.abc import Callable
from dataclasses import replace
from hashlib import blake2b
from typing import Final

from cluster.journal import Poisonous
from engine.request import GenerateRequest

logger = logging.getLogger("ray.serve")

QUARANTINE_S: Final = 600.0
MAX_REQUESTS: Final = 1000
_DIGEST_BYTES: Final = 16


class Quarantine:
    """Remembers them by a digest for a while: clients send again what has failed."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._until_s: dict[bytes, float] = {}

    def check(self, request: GenerateRequest) -> None:
        """Raise Poisonous for a request that is in here."""
        if not self._until_s:
            return
        key = digest(request)
        left_s = self._until_s.get(key, 0.0) - self._clock()
        if left_s <= 0:
            self._until_s.pop(key, None)
        else:
            raise Poisonous(
                "replicas were lost when they worked on this very request.",
                f"Send another one, or this one again in {left_s:.0f} s.",
            )

    def add(self, request: GenerateRequest) -> None:
        """Shut a request in. The log names it by its digest: prompts are nobody's business."""
        key = digest(request)
        logger.error("request %s is quarantined: digest %s", request.request_id, key.hex())
        self._until_s.pop(key, None)
        self._until_s[key] = self._clock() + QUARANTINE_S
        if len(self._until_s) > MAX_REQUESTS:
            del self._until_s[next(iter(self._until_s))]


def digest(request: GenerateRequest) -> bytes:
    """Name what a tenant asks: prompt and parameters but the seed."""
    params = replace(request.params, seed=None)
    asked = repr((request.tenant, request.prompt_token_ids, params)).encode()
    return blake2b(asked, digest_size=_DIGEST_BYTES).digest()
