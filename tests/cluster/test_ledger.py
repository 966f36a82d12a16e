"""The ledger against a plain model, and its rules one by one."""

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cluster.ledger import Ledger, LedgerEntry, LedgerLoad

unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

REPLICAS = ["r0", "r1", "r2"]


def entry(replica_id: str = "r0", size: int = 4) -> LedgerEntry:
    return LedgerEntry(replica_id, 1, size, 16 * size)


def test_acknowledged_request_is_off_the_load_but_still_ours() -> None:
    ledger = Ledger()
    ledger.enter("a", entry())
    assert ledger.load("r0") == LedgerLoad(1, 4, 64, 1)
    ledger.acknowledge("r0", "a")
    assert ledger.load("r0") == LedgerLoad(0, 0, 0, 1)
    ledger.release("a")
    assert ledger.load("r0") == LedgerLoad()
    assert ledger.num_requests == 0


def test_acknowledgement_of_an_earlier_placement_says_nothing_of_the_present_one() -> None:
    ledger = Ledger()
    ledger.enter("a", entry("r0"))
    ledger.enter("a", entry("r1"))
    assert ledger.load("r0") == LedgerLoad()
    ledger.acknowledge("r0", "a")
    assert ledger.load("r1") == LedgerLoad(1, 4, 64, 1)


def test_lost_replica_takes_its_entries_along() -> None:
    ledger = Ledger()
    ledger.enter("a", entry("r0"))
    ledger.enter("b", entry("r1"))
    ledger.drop_replica("r0")
    ledger.release("a")
    ledger.acknowledge("r0", "a")
    assert ledger.load("r0") == LedgerLoad()
    assert ledger.num_requests == 1


actions = st.tuples(
    st.sampled_from(["enter", "acknowledge", "release", "drop"]),
    st.sampled_from(["a", "b", "c", "d"]),
    st.sampled_from(REPLICAS),
    st.integers(1, 9),
)


@unhurried
@given(st.lists(actions, max_size=50))
def test_loads_are_the_sums_of_what_is_not_acknowledged(
    steps: list[tuple[str, str, str, int]],
) -> None:
    ledger = Ledger()
    placed: dict[str, LedgerEntry] = {}
    acknowledged: set[str] = set()
    for action, request_id, replica_id, size in steps:
        if action == "enter":
            placed[request_id] = entry(replica_id, size)
            acknowledged.discard(request_id)
            ledger.enter(request_id, placed[request_id])
        elif action == "acknowledge":
            if request_id in placed and placed[request_id].replica_id == replica_id:
                acknowledged.add(request_id)
            ledger.acknowledge(replica_id, request_id)
        elif action == "release":
            placed.pop(request_id, None)
            ledger.release(request_id)
        else:
            placed = {key: e for key, e in placed.items() if e.replica_id != replica_id}
            ledger.drop_replica(replica_id)
        for each in REPLICAS:
            own = {key: e for key, e in placed.items() if e.replica_id == each}
            on_the_way = [e for key, e in own.items() if key not in acknowledged]
            assert ledger.load(each) == LedgerLoad(
                sum(e.num_seqs for e in on_the_way),
                sum(e.num_blocks for e in on_the_way),
                sum(e.num_prefill_tokens for e in on_the_way),
                len(own),
            )
        assert ledger.num_requests == len(placed)
