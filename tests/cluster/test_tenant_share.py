"""What a tenant leaves alone depends on what it has and on who else is there."""

from cluster.request_need import WATERMARK
from cluster.tenant_share import ACTIVE_S, RESERVE, TenantShares
from tests.fakes import FakeClock


def test_a_tenant_alone_may_have_everything() -> None:
    shares = TenantShares(FakeClock())
    shares.start("a", 1.0, 1000)
    assert shares.spare("a", 1.0) == WATERMARK


def test_who_has_more_than_its_part_leaves_something_to_the_others() -> None:
    shares = TenantShares(FakeClock())
    shares.start("a", 1.0, 1000)
    shares.start("b", 1.0, 100)
    assert shares.spare("a", 1.0) == RESERVE
    assert shares.spare("b", 1.0) == WATERMARK
    # With ten times the weight it has less than its part.
    shares.start("a", 20.0, 0)
    assert shares.spare("a", 20.0) == WATERMARK
    assert shares.spare("b", 1.0) == RESERVE


def test_a_tenant_that_was_active_counts_for_a_while_and_is_then_forgotten() -> None:
    clock = FakeClock()
    shares = TenantShares(clock)
    shares.start("b", 1.0, 100)
    shares.end("b", 100)
    clock.advance(ACTIVE_S - 1)
    shares.start("a", 1.0, 1000)
    assert shares.spare("a", 1.0) == RESERVE
    clock.advance(2)
    assert shares.spare("a", 1.0) == WATERMARK
