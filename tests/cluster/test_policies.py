"""The policies by name: each does what its name says, and none chooses who does not serve."""

from functools import partial

import pytest

from cluster.policies import POLICIES
from cluster.request_need import RequestNeed
from tests.cluster import views as all_views
from tests.cluster.views import Row, fleet, ranking

view = partial(all_views.view, num_available_blocks=900, num_active=4)

NEED = RequestNeed(request_id="a", num_prompt_tokens=160, block_keys=(7, 8))


def first_choices(policy: str, views: list[Row], count: int = 300) -> dict[str, int]:
    """How often each is chosen in so many choices."""
    view = fleet(*views)
    chosen = []
    for rotation in range(count):
        choice = POLICIES[policy](view, NEED, rotation)
        assert choice is not None
        chosen.append(view.replica_ids[choice.row])
    return {replica_id: chosen.count(replica_id) for replica_id in sorted(set(chosen))}


@pytest.mark.parametrize("policy", POLICIES)
def test_nobody_is_chosen_who_does_not_serve(policy: str) -> None:
    views = [view("a", may_serve=False, num_active=0, num_available_blocks=1000), view("b")]
    assert first_choices(policy, views) == {"b": 300}
    assert POLICIES[policy](fleet(*views[:1]), NEED, 1) is None


def test_round_robin_takes_turns() -> None:
    busy = [view("a", num_active=90), view("b", num_queued_prefill_tokens=9999), view("c")]
    assert first_choices("round_robin", busy) == {"a": 100, "b": 100, "c": 100}


@pytest.mark.parametrize(
    ("policy", "better"),
    [
        ("least_requests", {"num_active": 3}),
        ("most_free", {"num_available_blocks": 901}),
        ("lmetric", {"num_queued_prefill_tokens": 0, "num_active": 3}),
        ("kv", {"num_cached_blocks": 5}),
        ("lmetric", {"num_cached_blocks": 5}),
    ],
)
def test_the_better_one_is_taken(policy: str, better: dict[str, int]) -> None:
    views = [view("a"), view("b", **better), view("c")]
    assert first_choices(policy, views) == {"b": 300}


def test_power_of_two_leaves_out_the_busiest_of_three_alone() -> None:
    chosen = first_choices("power_of_two", [view("a", num_active=9), view("b"), view("c")])
    assert chosen.keys() == {"b", "c"}
    assert min(chosen.values()) > 100


def test_prefix_hash_keeps_what_begins_alike_together_and_spreads_the_rest() -> None:
    prefix_hash = partial(ranking, policy=POLICIES["prefix_hash"])
    views = [view(name) for name in "abc"]
    assert len(first_choices("prefix_hash", views)) == 1
    homes = []
    for key in range(60):
        other = RequestNeed(request_id="x", num_prompt_tokens=64, block_keys=(key,))
        homes.append(prefix_hash(views, other)[0])
    assert {homes.count(name) > 5 for name in "abc"} == {True}
    # When one goes, only what it had finds another home.
    [home] = first_choices("prefix_hash", views)
    others = [v for v in views if v.replica_id != home]
    assert prefix_hash(views, NEED)[1:] == prefix_hash(others, NEED)
