"""The admission queue: who waits, in which order, for how long, and who is refused."""

import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.admission_limits import AdmissionLimits
from cluster.admission_queue import AdmissionQueue, Ticket
from cluster.board import Board
from cluster.request_need import RequestNeed
from engine.errors import Overloaded
from tests.cluster.token_fakes import make_snapshot
from tests.fakes import FakeClock

BLOCK = 16


class Cluster:
    """A board of one replica whose engine takes what it is sent at once, and its queue."""

    def __init__(self, num_blocks: int = 100, **limits: float) -> None:
        self.clock = FakeClock()
        self.board = Board(clock=self.clock)
        self.board.set_members({"a": {}})
        self.num_blocks = num_blocks
        self._sequence = 0
        self._running: dict[str, int] = {}
        self.report()
        self.queue = AdmissionQueue(
            self.board,
            AdmissionLimits(**limits),  # type: ignore[arg-type]
            self.clock,
            uniform=lambda low, high: (low + high) / 2,
        )
        self._number = 0

    def report(self) -> None:
        """The engine tells how it is."""
        self._sequence += 1
        used = sum(self._running.values())
        snapshot = make_snapshot(
            sequence=self._sequence,
            num_blocks=self.num_blocks,
            num_free_blocks=self.num_blocks - used,
            num_running=len(self._running),
        )
        self.board.update("a", snapshot, accepted=list(self._running))

    def ticket(self, num_blocks: int, tenant: str = "", **fields: float) -> Ticket:
        """A request of so many blocks, the first token's own among them."""
        self._number += 1
        need = RequestNeed(
            request_id=f"{tenant}{self._number}", num_prompt_tokens=(num_blocks - 1) * BLOCK
        )
        return Ticket(need=need, tenant=tenant, arrived_s=self.clock(), **fields)  # type: ignore[arg-type]

    def enter(self, num_blocks: int, tenant: str = "", **fields: float) -> Ticket | None:
        """Return the ticket if it waits."""
        ticket = self.ticket(num_blocks, tenant, **fields)
        if self.queue.enter(ticket) is None:
            return ticket
        self._run(ticket)
        return None

    def finish(self, request_id: str | None = None, num_output_tokens: int = 0) -> None:
        """The request, or the oldest that runs, ends."""
        request_id = request_id or next(iter(self._running))
        del self._running[request_id]
        self.report()
        self.queue.end(request_id, num_output_tokens)

    def look(self) -> list[str]:
        """Place whom there is room for."""
        placed = self.queue.place_next()
        for ticket, _ in placed:
            self._run(ticket)
        return [ticket.need.request_id for ticket, _ in placed]

    def _run(self, ticket: Ticket) -> None:
        self._running[ticket.need.request_id] = ticket.need.num_blocks(BLOCK)
        self.report()

    @property
    def num_used_blocks(self) -> int:
        """Of what runs."""
        return sum(self._running.values())


def test_a_request_goes_at_once_where_there_is_room_and_waits_where_there_is_none() -> None:
    cluster = Cluster(num_blocks=100)
    assert cluster.enter(60) is None
    waiting = cluster.enter(60)
    assert waiting is not None
    assert (len(cluster.queue), cluster.queue.num_tokens) == (1, 59 * BLOCK)
    assert cluster.look() == []
    cluster.finish()
    assert cluster.look() == [waiting.need.request_id]
    assert (len(cluster.queue), cluster.queue.num_tokens) == (0, 0)


def test_who_comes_later_does_not_go_past_those_who_wait() -> None:
    cluster = Cluster(num_blocks=100)
    cluster.enter(60)
    first = cluster.enter(60)
    second = cluster.enter(10)  # there would be room for it
    assert first is not None
    assert second is not None


def test_a_small_request_passes_a_large_one_only_so_often() -> None:
    cluster = Cluster(num_blocks=100)
    cluster.enter(60)
    large = cluster.enter(90)
    assert large is not None
    num_passed = 0
    for _ in range(200):
        assert cluster.enter(5) is not None
        num_passed += len(placed := cluster.look())
        for request_id in placed:
            cluster.finish(request_id)
    assert 0 < num_passed <= 70
    cluster.finish()
    assert cluster.look()[0] == large.need.request_id


def test_lower_priority_values_go_first_and_of_equals_the_first_to_come() -> None:
    cluster = Cluster(num_blocks=100)
    cluster.enter(99)
    tickets = [cluster.enter(20, priority=priority) for priority in (1, 0, 1, -1)]
    order = [ticket.need.request_id for ticket in tickets if ticket is not None]
    cluster.finish()
    assert cluster.look() == [order[3], order[1], order[0], order[2]]


def test_a_flood_of_one_tenant_does_not_hold_up_another() -> None:
    cluster = Cluster(num_blocks=100)
    cluster.enter(99, "flood")
    for _ in range(50):
        cluster.enter(20, "flood")
    other = cluster.enter(20, "other")
    assert other is not None
    cluster.finish()
    assert other.need.request_id in cluster.look()[:2]


def test_tenants_are_served_by_their_weights() -> None:
    cluster = Cluster(num_blocks=24)
    cluster.enter(24, "x")
    for _ in range(200):
        cluster.enter(4, "a", weight=3.0)
        cluster.enter(4, "b", weight=1.0)
    served: Counter[str] = Counter()
    cluster.finish()
    for _ in range(100):
        for request_id in cluster.look():
            served[request_id[0]] += 1
        cluster.finish()
    assert served["a"] / served["b"] == pytest.approx(3.0, rel=0.2)


def test_too_many_requests_or_tokens_are_refused_with_the_time_to_come_back() -> None:
    cluster = Cluster(max_requests=2)
    cluster.enter(99)
    cluster.enter(50)
    cluster.enter(50)
    with pytest.raises(Overloaded, match="2 requests wait already") as refusal:
        cluster.enter(50)
    assert refusal.value.retry_after_s >= 1
    cluster = Cluster(max_tokens=60 * BLOCK)
    cluster.enter(99)
    cluster.enter(50)
    with pytest.raises(Overloaded, match="tokens wait already"):
        cluster.enter(50)
    assert cluster.queue.snapshot().num_refused == 1


def fill_and_serve(cluster: Cluster, num_requests: int = 40) -> None:
    """Two requests of 50 blocks a second, while others wait."""
    cluster.enter(50)
    cluster.enter(50)
    for _ in range(num_requests):
        cluster.enter(50)
    for _ in range(20):
        cluster.clock.advance(1.0)
        cluster.finish()
        cluster.look()


def test_the_predicted_wait_is_what_waits_over_the_rate_at_which_others_went() -> None:
    cluster = Cluster()
    assert cluster.queue.predicted_wait_s == 0.0
    fill_and_serve(cluster)
    # One in a second, and as many seconds' worth waits as there are requests.
    assert cluster.queue.predicted_wait_s == pytest.approx(len(cluster.queue), rel=0.1)


def test_a_wait_beyond_the_deadline_or_the_limit_is_refused_at_once() -> None:
    cluster = Cluster(max_wait_s=30.0)
    fill_and_serve(cluster)
    waits_s = cluster.queue.predicted_wait_s
    assert waits_s is not None
    assert cluster.enter(50, deadline_s=cluster.clock() + 2 * waits_s) is not None
    with pytest.raises(Overloaded, match="may wait for 5 s") as refusal:
        cluster.enter(50, deadline_s=cluster.clock() + 5)
    assert refusal.value.retry_after_s == pytest.approx(waits_s, rel=0.2)
    cluster = Cluster(max_wait_s=10.0)
    fill_and_serve(cluster)
    with pytest.raises(Overloaded, match="may wait for 10 s"):
        cluster.enter(50)


def test_nobody_is_told_to_stay_away_for_longer_than_anybody_waits() -> None:
    cluster = Cluster(max_wait_s=30.0)
    fill_and_serve(cluster)
    for silence_s in (60.0, 600.0, 20_000.0):  # nothing ends: the replica hangs
        cluster.clock.advance(silence_s)
        with pytest.raises(Overloaded) as refusal:
            cluster.enter(50)
        assert 1 <= refusal.value.retry_after_s <= 36


def test_who_is_more_urgent_is_not_turned_away_for_those_who_come_after_it() -> None:
    cluster = Cluster(max_wait_s=10.0)
    cluster.enter(50, priority=5)
    cluster.enter(50, priority=5)
    for _ in range(40):
        cluster.enter(50, priority=5)
    for _ in range(20):
        cluster.clock.advance(1.0)
        cluster.finish()
        cluster.look()
    with pytest.raises(Overloaded):
        cluster.enter(50, priority=5)
    urgent = cluster.enter(50, priority=0)
    assert urgent is not None
    cluster.finish()
    assert cluster.look() == [urgent.need.request_id]


def test_a_deadline_that_has_passed_is_told_as_such() -> None:
    cluster = Cluster(max_wait_s=30.0)
    fill_and_serve(cluster)
    late = cluster.enter(50, deadline_s=cluster.clock() - 1)
    assert cluster.queue.give_up() == [late]


def test_the_rate_is_measured_again_once_there_are_replicas_again() -> None:
    cluster = Cluster()
    cluster.board.set_members({})
    for _ in range(40):
        cluster.enter(50)
    cluster.board.set_members({"a": {}})
    cluster.report()
    cluster.look()
    for _ in range(20):
        cluster.clock.advance(1.0)
        cluster.finish()
        cluster.look()
    assert cluster.queue.predicted_wait_s == pytest.approx(len(cluster.queue), rel=0.2)


def test_a_burst_after_a_quiet_hour_is_not_judged_by_the_quiet() -> None:
    cluster = Cluster()
    fill_and_serve(cluster, num_requests=25)
    while len(cluster.queue):
        cluster.clock.advance(1.0)
        cluster.finish()
        cluster.look()
    cluster.clock.advance(3600.0)
    for _ in range(10):
        cluster.enter(50)
    assert 0 < (cluster.queue.predicted_wait_s or math.inf) < 30


def test_those_whose_time_is_up_are_given_up() -> None:
    cluster = Cluster(max_wait_s=10.0)
    cluster.enter(99)
    patient, hasty = cluster.enter(50), cluster.enter(50, deadline_s=cluster.clock() + 2)
    assert cluster.queue.give_up() == []
    cluster.clock.advance(2.0)
    assert cluster.queue.give_up() == [hasty]
    cluster.clock.advance(8.1)
    assert cluster.queue.give_up() == [patient]
    assert len(cluster.queue) == 0


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(2, 60), st.integers(0, 2)), max_size=60),
    st.randoms(use_true_random=False),
)
def test_every_request_is_placed_once_within_the_blocks_and_nothing_is_left(
    requests: list[tuple[str, int, int]], random: "object"
) -> None:
    cluster = Cluster(num_blocks=64)
    entered, placed = set(), set()
    for tenant, num_blocks, priority in requests:
        ticket = cluster.ticket(num_blocks, tenant, priority=priority)
        entered.add(ticket.need.request_id)
        if cluster.queue.enter(ticket) is not None:
            cluster._run(ticket)
            placed.add(ticket.need.request_id)
        assert cluster.num_used_blocks <= 64
    while cluster._running or len(cluster.queue):
        for request_id in cluster.look():
            assert request_id not in placed
            placed.add(request_id)
        assert cluster.num_used_blocks <= 64
        cluster.finish(random.choice(list(cluster._running)))  # type: ignore[attr-defined]
    assert placed == entered
    assert cluster.board.num_requests == 0
    assert cluster.queue.num_tokens == 0


def test_a_tenant_that_is_ahead_leaves_room_to_one_who_was_here_of_late() -> None:
    cluster = Cluster(num_blocks=100)
    assert cluster.enter(10, "small") is None
    cluster.finish()
    assert cluster.enter(60, "flood") is None
    assert cluster.enter(35, "flood") is not None  # 5 of 100 would be left
    assert cluster.enter(35, "small") is not None  # behind one that waits
    assert cluster.look() == ["small4"]


def test_a_tenant_alone_may_have_everything() -> None:
    cluster = Cluster(num_blocks=100)
    assert cluster.enter(60, "flood") is None
    assert cluster.enter(39, "flood") is None


class TestWithoutReplicas:
    """A deployment that has gone to zero: the first request makes one start."""

    def asleep(self, max_wait_s: float = 60.0, max_start_s: float = 600.0) -> Cluster:
        cluster = Cluster(max_wait_s=max_wait_s, max_start_s=max_start_s)
        cluster.board.set_members({})
        return cluster

    def wake(self, cluster: Cluster) -> None:
        cluster.board.set_members({"a": {}})
        cluster.report()

    def test_requests_wait_for_the_start_and_then_as_long_as_others(self) -> None:
        cluster = self.asleep(max_wait_s=60, max_start_s=600)
        first, second = cluster.enter(90), cluster.enter(90)
        assert first is not None
        assert second is not None
        for _ in range(10):
            cluster.clock.advance(30)
            assert cluster.queue.give_up() == []
        self.wake(cluster)
        assert cluster.look() == [first.need.request_id]
        cluster.clock.advance(59)
        assert cluster.queue.give_up() == []
        cluster.clock.advance(2)
        assert cluster.queue.give_up() == [second]

    def test_a_start_that_takes_for_ever_is_given_up(self) -> None:
        cluster = self.asleep(max_wait_s=60, max_start_s=600)
        ticket = cluster.enter(5)
        cluster.clock.advance(659)
        assert cluster.queue.give_up() == []
        cluster.clock.advance(2)
        assert cluster.queue.give_up() == [ticket]

    def test_a_deadline_holds_during_a_start(self) -> None:
        cluster = self.asleep()
        ticket = cluster.enter(5, deadline_s=10)
        cluster.clock.advance(11)
        assert cluster.queue.give_up() == [ticket]

    def test_what_was_served_before_does_not_turn_anybody_away(self) -> None:
        cluster = Cluster(max_wait_s=60)
        cluster.enter(100)
        for _ in range(20):  # slowly, while others wait
            cluster.enter(90)
            cluster.clock.advance(2)
            cluster.finish()
            cluster.look()
        with pytest.raises(Overloaded):
            [cluster.enter(90) for _ in range(60)]
        while cluster.num_used_blocks:
            cluster.finish()
            cluster.look()
        cluster.board.set_members({})
        cluster.clock.advance(300)
        for _ in range(60):
            assert cluster.enter(90) is not None
        assert cluster.queue.predicted_wait_s is None
