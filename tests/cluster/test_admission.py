"""Requests that wait on an event loop: they go on, are refused or leave, and nothing is left."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from cluster.admission import Admission
from cluster.admission_limits import AdmissionLimits
from cluster.board import Board
from engine.errors import DeadlinePassed, Overloaded
from engine.request import GenerateRequest
from engine.sampling_params import SamplingParams
from tests.cluster.token_fakes import make_snapshot

Case = Callable[[Board, Admission], Awaitable[None]]


def request(request_id: str, num_blocks: int = 60, **fields: object) -> GenerateRequest:
    return GenerateRequest(
        request_id=request_id,
        prompt_token_ids=[7] * 16 * (num_blocks - 1),
        params=SamplingParams(),
        **fields,  # type: ignore[arg-type]
    )


def run(
    case: Case, *replica_ids: str, max_wait_s: float = 60.0, block_size: int | None = 16
) -> None:
    """Run a case on replicas of 100 blocks; afterwards nothing may be held or placed."""

    async def main() -> None:
        board = Board()
        board.set_members({replica_id: {} for replica_id in replica_ids})
        for replica_id in replica_ids:
            board.update(replica_id, make_snapshot())
        limits = AdmissionLimits(max_wait_s=max_wait_s)
        admission = Admission(
            board, limits, model_name="m", block_size=block_size, ttft_objective_s=0.5
        )
        await case(board, admission)
        assert board.num_requests == 0
        assert admission.snapshot().num_held_requests == 0
        assert admission.demand().num_held_tokens == 0

    asyncio.run(main())


def now() -> float:
    return asyncio.get_running_loop().time()


def test_who_waits_goes_on_when_another_ends() -> None:
    async def case(board: Board, admission: Admission) -> None:
        first, second = request("r1"), request("r2")
        await admission.place(first, now())
        waiting = asyncio.create_task(admission.place(second, now()))
        await asyncio.sleep(0.02)
        assert not waiting.done()
        assert admission.demand().num_held_requests == 1
        assert admission.demand().num_held_tokens == 59 * 16
        admission.end(first, 3)
        assert await waiting == second
        assert board.placement("r2") == "a"
        admission.end(second, 3)

    run(case, "a")


def test_who_waits_goes_on_when_a_replica_joins() -> None:
    async def case(board: Board, admission: Admission) -> None:
        waiting = asyncio.create_task(admission.place(request("r1"), now()))
        await asyncio.sleep(0.02)
        board.set_members({"b": {}})
        await asyncio.sleep(0.02)
        assert not waiting.done()  # it has not said how it is
        board.update("b", make_snapshot())
        admission.wake()
        await waiting
        assert board.placement("r1") == "b"
        admission.end(request("r1"), 1)

    run(case)


def test_a_client_that_leaves_while_it_waits_leaves_nothing() -> None:
    async def case(board: Board, admission: Admission) -> None:
        first, second = request("r1"), request("r2")
        await admission.place(first, now())
        waiting = asyncio.create_task(admission.place(second, now()))
        await asyncio.sleep(0.02)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        admission.end(second, 0)
        admission.end(first, 0)

    run(case, "a")


def test_a_client_that_leaves_as_its_turn_comes_leaves_nothing() -> None:
    async def case(board: Board, admission: Admission) -> None:
        first, second = request("r1"), request("r2")
        await admission.place(first, now())
        waiting = asyncio.create_task(admission.place(second, now()))
        await asyncio.sleep(0)
        admission.end(first, 0)
        while board.placement("r2") is None:  # noqa: ASYNC110  the very turn of the loop counts
            await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait({waiting})
        admission.end(second, 0)

    run(case, "a")


def test_who_waits_too_long_is_refused_with_the_time_to_come_back() -> None:
    async def case(board: Board, admission: Admission) -> None:
        first = request("r0")
        await admission.place(first, now())
        with pytest.raises(Overloaded, match="no replica had room within") as refusal:
            await admission.place(request("r1"), now())
        assert refusal.value.retry_after_s >= 1
        admission.end(request("r1"), 0)
        admission.end(first, 0)
        assert admission.demand().ttft_attainment == 0.0
        assert admission.snapshot().num_refused == 1

    run(case, "a", max_wait_s=0.05)


def test_who_has_lost_its_replica_late_may_wait_for_another() -> None:
    async def case(board: Board, admission: Admission) -> None:
        first, second = request("r1"), request("r2.1")
        await admission.place(first, now())
        # It had waited and run for longer than anybody may wait before its replica died.
        waiting = asyncio.create_task(admission.place(second, now() - 300.0))
        await asyncio.sleep(0.2)
        admission.end(first, 0)
        assert await waiting == second
        admission.end(second, 0)

    run(case, "a", max_wait_s=30.0)


def test_a_deadline_passes_while_a_request_waits() -> None:
    async def case(board: Board, admission: Admission) -> None:
        with pytest.raises(DeadlinePassed):
            await admission.place(request("r1", deadline_s=0.05), now())
        admission.end(request("r1"), 0)

    run(case)


def test_the_time_spent_waiting_comes_off_the_deadline() -> None:
    async def case(board: Board, admission: Admission) -> None:
        placed = await admission.place(request("r1", deadline_s=30.0), now() - 10.0)
        assert placed.deadline_s == pytest.approx(20.0, abs=1.0)
        admission.end(placed, 0)

    run(case, "a")


def test_a_session_goes_where_its_last_turn_was_until_that_costs_more() -> None:
    async def case(board: Board, admission: Admission) -> None:
        turn = request("r1", num_blocks=20, session_id="talk")
        await admission.place(turn, now())
        home = board.placement("r1")
        assert home is not None
        admission.end(turn, 100)
        other = next(name for name in ("a", "b") if name != home)
        for i in range(2, 6):
            # Without a session the turns would go round.
            turn = request(f"r{i}", num_blocks=20, session_id="talk", cache_salt=str(i))
            await admission.place(turn, now())
            assert board.placement(turn.request_id) == home
            [decision] = board.decisions(turn.request_id)
            assert decision.reason == "session"
            admission.end(turn, 100)
        busy = make_snapshot(sequence=2, num_running=200, num_queued_prefill_tokens=100)
        board.update(home, busy)
        turn = request("last", num_blocks=20, session_id="talk", cache_salt="x")
        await admission.place(turn, now())
        assert board.placement("last") == other
        admission.end(turn, 0)

    run(case, "a", "b")


def test_engines_that_cache_nothing_are_not_hoped_to_have_anything() -> None:
    async def case(board: Board, admission: Admission) -> None:
        for i in range(4):
            turn = request(f"r{i}", num_blocks=20, session_id="talk")
            await admission.place(turn, now())
            [decision] = board.decisions(turn.request_id)
            assert decision.reason == "cost"
            assert {each.num_cached_blocks for each in decision.candidates} == {0}
            admission.end(turn, 100)

    run(case, "a", "b", block_size=None)


def test_attainment_is_the_share_of_first_tokens_in_time() -> None:
    async def case(board: Board, admission: Admission) -> None:
        for age_s in (0.1, 0.2, 0.3, 2.0):
            admission.note_first_token(now() - age_s)
        assert admission.demand().ttft_attainment == 0.75

    run(case, "a")
