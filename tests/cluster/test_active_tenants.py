"""Tenants of the last minute."""

from cluster.active_tenants import ACTIVE_S, ActiveTenants
from tests.fakes import FakeClock


def test_tenants_count_for_a_minute_after_their_last_request() -> None:
    clock = FakeClock()
    active = ActiveTenants(clock)
    active.note("a")
    active.note("b")
    clock.advance(ACTIVE_S / 2)
    active.note("a")
    assert active.others("a") == ["b"]
    assert active.others("b") == ["a"]
    clock.advance(ACTIVE_S / 2 + 1)
    assert active.others("a") == []
    assert active.others("c") == ["a"]
