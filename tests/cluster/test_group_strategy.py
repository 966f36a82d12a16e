"""When a tensor-parallel group is kept on one node."""

import pytest

from cluster.group_strategy import Node, group_strategy

GROUP = [{"CPU": 0.1}, *[{"CPU": 1.0, "GPU": 1.0}] * 4]
"""A supervisor and four ranks."""


def node(num_gpus: float, num_cpus: float = 32.0, **labels: str) -> Node:
    resources = {"CPU": num_cpus, "GPU": num_gpus} if num_gpus else {"CPU": num_cpus}
    return Node(resources, labels)


@pytest.mark.parametrize(
    ("nodes", "strategy"),
    [
        ([node(4)], "STRICT_PACK"),
        ([node(2), node(8)], "STRICT_PACK"),
        ([node(2), node(2)], "PACK"),
        ([node(0, num_cpus=64), node(2)], "PACK"),
        ([node(4, num_cpus=4)], "PACK"),  # no room for the supervisor beside the ranks
        ([], "PACK"),
    ],
)
def test_one_node_has_to_have_all_that_the_group_takes(nodes: list[Node], strategy: str) -> None:
    assert group_strategy(GROUP, {}, nodes) == strategy


@pytest.mark.parametrize(
    ("wanted", "strategy"),
    [
        ("h100", "STRICT_PACK"),
        ("l4", "PACK"),
        ("!l4", "STRICT_PACK"),
        ("!h100", "PACK"),
        ("in(h100, h200)", "STRICT_PACK"),
        ("in(l4,a10)", "PACK"),
        ("!in(l4, a10)", "STRICT_PACK"),
        ("!in(h100, a10)", "PACK"),
    ],
)
def test_nodes_without_the_labels_do_not_count(wanted: str, strategy: str) -> None:
    nodes = [node(8, gpu="h100"), node(2, gpu="l4"), node(2)]
    assert group_strategy(GROUP, {"gpu": wanted}, nodes) == strategy


def test_every_label_has_to_fit() -> None:
    nodes = [node(8, gpu="h100", zone="a"), node(2, gpu="h100", zone="b")]
    assert group_strategy(GROUP, {"gpu": "h100", "zone": "a"}, nodes) == "STRICT_PACK"
    assert group_strategy(GROUP, {"gpu": "h100", "zone": "b"}, nodes) == "PACK"


def test_a_node_without_a_label_is_not_what_a_selector_rules_out() -> None:
    assert group_strategy(GROUP, {"gpu": "!l4"}, [node(8)]) == "STRICT_PACK"
