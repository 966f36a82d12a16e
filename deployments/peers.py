"""What frontends ask each other: any of them answers for all."""

from typing import Any, Protocol, TypeVar

from deployments.metrics import OwnFamilies

Decisions = list[dict[str, Any]]

T = TypeVar("T")


class Peers(Protocol):
    """All frontends of the application; each answers, or there is the reason why it did not."""

    async def decisions(self, request_id: str) -> list[Decisions | BaseException]:
        """What each knows of a request's placements."""

    async def families(self) -> list[OwnFamilies | BaseException]:
        """What each has measured."""


def split_answers(answers: list[T | BaseException]) -> tuple[list[T], list[BaseException]]:
    """Return what was told, and why the rest was not."""
    silent = [answer for answer in answers if isinstance(answer, BaseException)]
    return [answer for answer in answers if not isinstance(answer, BaseException)], silent
