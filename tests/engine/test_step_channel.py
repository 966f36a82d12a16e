"""A step's way from rank 0 to a follower."""

from collections import deque
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from torch import Tensor

from engine.activation_memory import example_step
from engine.parallel import TensorParallel
from engine.step_channel import StepChannel
from engine.step_input import StepInput


@dataclass(frozen=True, slots=True)
class _LoopBack(TensorParallel):
    """Rank 0 and follower in one: what one broadcast sends, a later one receives."""

    messages: deque[Tensor] = field(default_factory=deque)
    is_sender: bool = True

    def broadcast(self, x: Tensor) -> Tensor:
        if self.is_sender:
            self.messages.append(x.clone())
            return x
        message = self.messages.popleft()
        assert message.shape == x.shape, "a receiver must know the length beforehand"
        return x.copy_(message)


def channel_pair() -> tuple[StepChannel, StepChannel, deque[Tensor]]:
    sender = _LoopBack(0, 2)
    follower = _LoopBack(1, 2, messages=sender.messages, is_sender=False)
    return StepChannel(sender), StepChannel(follower), sender.messages


def assert_equal(actual: StepInput, expected: StepInput) -> None:
    assert np.array_equal(actual.token_ids, expected.token_ids)
    assert np.array_equal(actual.positions, expected.positions)
    assert np.array_equal(actual.logits_rows, expected.logits_rows)
    for name in ("query_start_loc", "seq_lens", "block_tables", "slot_mapping"):
        sent, received = getattr(expected.layout, name), getattr(actual.layout, name)
        assert np.array_equal(received, sent)
        assert received.dtype == np.int32


@pytest.mark.parametrize(
    ("query_lens", "num_messages"),
    [([1], 1), ([1] * 64, 1), ([1, 1, 7, 30], 1), ([2048], 2), ([1] * 3 + [1300, 900], 2)],
    ids=["one token", "many decodes", "mixed", "a long prompt", "several long ones"],
)
def test_a_step_arrives_whole_in_at_most_two_messages(
    query_lens: list[int], num_messages: int
) -> None:
    sender, follower, messages = channel_pair()
    step = example_step(query_lens, 16, num_rows=1)

    sender.send(step)
    assert len(messages) == num_messages
    received = follower.receive()

    assert received is not None
    assert_equal(received, step)
    assert not messages


def test_steps_of_any_size_follow_each_other_and_a_stop_ends_them() -> None:
    sender, follower, _ = channel_pair()
    steps = [example_step(lens, 4, num_rows=0) for lens in ([3], [1500, 1500], [1], [5000], [1])]

    for step in steps:
        sender.send(step)
        received = follower.receive()
        assert received is not None
        assert_equal(received, step)
    sender.send_stop()

    assert follower.receive() is None


def test_a_group_of_one_sends_nothing() -> None:
    channel = StepChannel(TensorParallel.single())

    channel.send(example_step([4], 4, num_rows=1))
    channel.send_stop()


def test_a_step_packs_to_int32() -> None:
    assert example_step([4, 2], 4, num_rows=1).pack().dtype == np.int32
    assert torch.from_numpy(example_step([4], 4, num_rows=1).pack()).is_contiguous()
