"""Sessions: remembered for ten minutes, apart by tenant."""

from cluster.sessions import KEEP_S, Session, Sessions
from tests.fakes import FakeClock


def test_the_last_turn_is_found_by_tenant_and_name() -> None:
    clock = FakeClock()
    sessions = Sessions(clock)
    sessions.note("t1", "talk", "a", 10)
    sessions.note("t2", "talk", "b", 20)
    sessions.note("t1", "talk", "c", 30)
    assert sessions.find("t1", "talk") == Session("c", 30, 0.0)
    assert sessions.find("t2", "talk") == Session("b", 20, 0.0)
    assert sessions.find("t3", "talk") is None


def test_a_session_is_forgotten_after_its_time() -> None:
    clock = FakeClock()
    sessions = Sessions(clock)
    sessions.note("t", "talk", "a", 10)
    clock.advance(KEEP_S)
    assert sessions.find("t", "talk") is not None
    clock.advance(1)
    assert sessions.find("t", "talk") is None
    sessions.note("t", "other", "a", 10)
    assert len(sessions._sessions) == 1
