"""The rate at which requests are served counts the time in which others wait, and no other."""

import pytest

from cluster.attainment import PERIOD_S, Attainment
from cluster.served_rate import ServedRate
from tests.fakes import FakeClock


def test_a_steady_rate_is_found_from_the_beginning() -> None:
    clock = FakeClock()
    rate = ServedRate(clock)
    rate.start()
    for i in range(200):
        clock.advance(0.5)
        rate.add(100)
        if i in (20, 60, 199):
            assert rate.per_s == pytest.approx(200, rel=0.05)


def test_too_little_says_nothing() -> None:
    clock = FakeClock()
    rate = ServedRate(clock)
    rate.start()
    for _ in range(7):
        clock.advance(2)
        rate.add(100)
    assert rate.per_s is None
    rate.add(100)
    assert rate.per_s is not None


def test_time_in_which_nobody_waits_does_not_count() -> None:
    clock = FakeClock()
    rate = ServedRate(clock)
    rate.start()
    for _ in range(50):
        clock.advance(1)
        rate.add(100)
    before = rate.per_s
    rate.stop()
    clock.advance(3600)
    rate.add(100)  # nobody waited: it says nothing of what could be served
    assert rate.per_s == before
    rate.start()
    clock.advance(30)
    assert before is not None
    assert rate.per_s is not None
    assert rate.per_s < before


def test_attainment_forgets_after_a_minute() -> None:
    clock = FakeClock()
    attainment = Attainment(1.0, clock)
    assert attainment.share == 1.0
    attainment.add(2.0)
    attainment.add(1.0)
    assert attainment.share == 0.5
    clock.advance(PERIOD_S + 1)
    attainment.add(0.5)
    assert attainment.share == 1.0
