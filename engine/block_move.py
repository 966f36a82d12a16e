"""Copies of whole KV blocks that a step makes before it computes anything."""

from enum import IntEnum
from typing import NamedTuple


class MoveKind(IntEnum):
    """From where to where. The numbers travel between ranks."""

    SAVE = 0
    """block of the device to block of the host tier"""
    RESTORE = 1
    """block of the host tier to block of the device"""
    COPY = 2
    """block of the device to another one"""


class BlockMove(NamedTuple):
    """One copy, all layers. Moves are made in their order: a later one may overwrite an earlier
    one's source."""

    kind: MoveKind
    source: int
    target: int
