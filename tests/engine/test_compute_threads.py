"""Compute threads: a core each, no more than one engine to a core, the caller unharmed."""

import os
import threading
from collections.abc import Iterator

import pytest
import torch

from engine.compute_threads import ComputeThreads, caller_unmoved

# Engines that run beside the tests must not matter.
SCOPE = f"test-{os.getpid()}"

pytestmark = pytest.mark.skipif(
    len(os.sched_getaffinity(0)) < 2, reason="placing threads takes two cores"
)


@pytest.fixture
def two_torch_threads() -> Iterator[None]:
    """Torch computes with a helper, whatever engines of other tests have told this process."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def run_in_thread(action: object) -> None:
    """Run a callable in a thread of its own, whose affinity nobody minds."""
    assert callable(action)
    thread = threading.Thread(target=action)
    thread.start()
    thread.join()


def compute_in_parallel() -> None:
    """Work enough for torch to wake all threads it has for the caller."""
    torch.ones(1 << 20).add_(1)


@pytest.mark.usefixtures("two_torch_threads")
@pytest.mark.parametrize("has_helpers_before", [False, True])
def test_placed_thread_keeps_to_one_core_and_its_helpers_to_others(
    has_helpers_before: bool,
) -> None:
    found: list[set[int]] = []

    def place() -> None:
        before = set(os.listdir("/proc/self/task"))
        if has_helpers_before:
            compute_in_parallel()
        ComputeThreads(2, scope=SCOPE).place()
        compute_in_parallel()
        helpers = set(os.listdir("/proc/self/task")) - before
        found.extend([os.sched_getaffinity(0)] + [os.sched_getaffinity(int(h)) for h in helpers])

    run_in_thread(place)
    assert [len(cores) for cores in found] == [1, 1]
    assert found[0] != found[1]


def test_cores_claimed_by_another_engine_are_left_alone() -> None:
    cores = len(os.sched_getaffinity(0))
    first = ComputeThreads(cores, scope=SCOPE)
    found: list[set[int]] = []

    def place() -> None:
        ComputeThreads(cores, scope=SCOPE).place()
        found.append(os.sched_getaffinity(0))

    run_in_thread(place)
    assert len(found[0]) == cores
    del first


def test_caller_is_put_back() -> None:
    threads = ComputeThreads(2, scope=SCOPE)
    before = os.sched_getaffinity(0)
    with threads.placed():
        assert len(os.sched_getaffinity(0)) == 1
    assert os.sched_getaffinity(0) == before
    with caller_unmoved():
        threads.place()
    assert os.sched_getaffinity(0) == before
