"""Decides whether a tensor-parallel group lives on one node or on several. Pure; knows no Ray.

Ranks exchange activations twice a layer, which memory or NVLink carry better than a network: a
group that some node can hold is kept on one, even if it has to wait for it. One that none can hold
is spread over as few as Ray can.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Strategy = Literal["STRICT_PACK", "PACK"]
"""Ray's words: all bundles on one node, or on as few as there is room on."""

_ONE_OF = re.compile(r"in\((.*)\)")


@dataclass(frozen=True, slots=True)
class Node:
    """A node that is alive."""

    resources: Mapping[str, float]
    """In all, whoever uses them at present."""
    labels: Mapping[str, str]


def group_strategy(
    bundles: Sequence[Mapping[str, float]], selector: Mapping[str, str], nodes: Sequence[Node]
) -> Strategy:
    """Return how to place these bundles on the nodes that the label selector allows."""
    needed: Counter[str] = Counter()
    for bundle in bundles:
        needed.update(bundle)
    for node in nodes:
        allowed = all(_matches(value, node.labels.get(label)) for label, value in selector.items())
        if allowed and all(node.resources.get(name, 0) >= num for name, num in needed.items()):
            return "STRICT_PACK"
    return "PACK"


def _matches(wanted: str, value: str | None) -> bool:
    """Whether a node with this value of a label, or without it, is meant; Ray's selectors."""
    if wanted.startswith("!"):
        return value is None or not _matches(wanted[1:], value)
    one_of = _ONE_OF.fullmatch(wanted)
    choices = [wanted] if one_of is None else [choice.strip() for choice in one_of[1].split(",")]
    return value in choices
