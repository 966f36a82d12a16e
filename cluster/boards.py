"""Boards of this process by name.

Ray Serve builds the request router itself, inside the frontend's process, and gives us no way
to hand it an object: this is the one place where the two meet. It has to be a function: Serve
pickles the router's class with copies of the objects it names, but functions of an importable
module go by name.
"""

import random

from cluster.board import Board

_boards: dict[str, Board] = {}


def find_board(name: str) -> Board:
    """The board of that name, made on first use."""
    board = _boards.get(name)
    # setdefault is atomic: two threads that come first at once get the same board.
    if board is None:
        board = _boards.setdefault(name, Board(rotation=random.randrange(1 << 16)))  # noqa: S311
    return board
