"""Batches turned into arrays, against a plain rebuild from scratch."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.batch import Batch, ScheduledRequest
from engine.input_batch import InputBatch
from engine.request import Request, RequestStatus
from engine.sampling_params import SamplingParams
from engine.step_input import StepInput
from kernels.layout import StepLayout

BLOCK_SIZE = 4
MAX_NUM_SEQS = 4
EVENTS = ["start", "preempt", "resume", "end", "step"]


def make_request(name: str, num_prompt_tokens: int) -> Request:
    return Request(
        request_id=name,
        choice_index=0,
        prompt_token_ids=[hash_of(name, i) for i in range(num_prompt_tokens)],
        params=SamplingParams(),
        seed=0,
        max_tokens=10,
        stop_token_ids=frozenset(),
        status=RequestStatus.RUNNING,
    )


def hash_of(name: str, i: int) -> int:
    return (sum(map(ord, name)) * 31 + i * 7) % 1000


def make_input_batch() -> InputBatch:
    return InputBatch(max_num_seqs=MAX_NUM_SEQS, max_model_len=64, block_size=BLOCK_SIZE)


def check(step: StepInput, batch: Batch) -> None:
    """Compare with what a loop over requests says, whatever order the sequences have."""
    layout = step.layout
    seen = []
    for i in range(layout.num_seqs):
        first, last = layout.query_start_loc[i : i + 2].tolist()
        seq_len = int(layout.seq_lens[i])
        positions = list(range(seq_len - (last - first), seq_len))
        assert step.positions[first:last].tolist() == positions
        [index] = [
            j
            for j, item in enumerate(batch.requests)
            if item.request.block_ids[0] == layout.block_tables[i, 0]
        ]
        seen.append(index)
        item = batch.requests[index]
        request = item.request
        assert item.num_scheduled_tokens == last - first
        assert positions[0] == request.num_computed_tokens
        assert step.token_ids[first:last].tolist() == [request.token_ids[p] for p in positions]
        num_blocks = -(-seq_len // BLOCK_SIZE)
        assert layout.block_tables[i, :num_blocks].tolist() == request.block_ids[:num_blocks]
        slots = [
            request.block_ids[p // BLOCK_SIZE] * BLOCK_SIZE + p % BLOCK_SIZE for p in positions
        ]
        assert layout.slot_mapping[first:last].tolist() == slots
        if index in batch.wanting:
            assert step.logits_rows[batch.wanting.index(index)] == last - 1
            assert step.drawn_rows[batch.wanting.index(index)] == layout.rows[i]
    assert sorted(seen) == list(range(len(batch.requests)))
    assert len(step.logits_rows) == len(batch.wanting)
    counts = np.diff(layout.query_start_loc)
    assert step.token_rows.tolist() == np.repeat(layout.rows, counts).tolist()
    assert layout.num_decodes == (counts == 1).sum()


class _Driver:
    """Does to requests what the scheduler may: start, compute, preempt, resume, end."""

    def __init__(self) -> None:
        self.inputs = make_input_batch()
        self.free_blocks = list(range(200))
        self.running: list[Request] = []
        self.preempted: list[Request] = []
        self.num_started = 0
        self.tables: dict[int, list[int]] = {}

    def start(self, num_prompt_tokens: int) -> None:
        if len(self.running) + len(self.preempted) < MAX_NUM_SEQS:
            self.running.append(make_request(f"r{self.num_started}", num_prompt_tokens))
            self.num_started += 1

    def preempt(self) -> None:
        if self.running:
            victim = self.running.pop()
            victim.status = RequestStatus.WAITING
            victim.num_preemptions += 1
            victim.num_computed_tokens = 0
            self.free_blocks += victim.block_ids
            victim.block_ids.clear()
            self.preempted.append(victim)

    def resume(self) -> None:
        if self.preempted:
            self.preempted[-1].status = RequestStatus.RUNNING
            self.running.append(self.preempted.pop())

    def end(self) -> None:
        if self.running:
            ended = self.running.pop(0)
            ended.status = RequestStatus.FINISHED
            self.free_blocks += ended.block_ids

    def follow(self, layout: StepLayout) -> None:
        """Keep tables by what is said to have grown alone; they must be right all the same."""
        assert layout.grown is not None
        for i in layout.grown:
            self.tables[layout.rows[i]] = layout.block_tables[i].tolist()
        for i, row in enumerate(layout.rows):
            num_blocks = -(-int(layout.seq_lens[i]) // BLOCK_SIZE)
            assert self.tables[row][:num_blocks] == layout.block_tables[i, :num_blocks].tolist()

    def step(self, num_requests: int, most_tokens: int) -> None:
        """Compute the oldest requests; the others wait for the budget."""
        chosen = []
        for request in self.running[:num_requests]:
            count = min(request.num_tokens - request.num_computed_tokens, most_tokens)
            chosen.append(ScheduledRequest(request, count))
            while len(request.block_ids) * BLOCK_SIZE < request.num_computed_tokens + count:
                request.block_ids.append(self.free_blocks.pop(0))
        if not chosen:
            return
        batch = Batch(sorted(chosen, key=lambda item: item.num_scheduled_tokens > 1))
        step = self.inputs.step_input(batch)
        check(step, batch)
        self.follow(step.layout)
        for item in chosen:
            item.request.num_computed_tokens += item.num_scheduled_tokens
        for i in batch.wanting:
            batch.requests[i].request.token_ids.append(most_tokens)
        for full in [request for request in self.running if request.num_tokens == 60]:
            self.running.remove(full)
            full.status = RequestStatus.FINISHED
            self.free_blocks += full.block_ids


@settings(max_examples=150, deadline=None)
@given(
    events=st.lists(
        st.tuples(st.sampled_from(EVENTS), st.integers(1, 12)),
        max_size=60,
    )
)
def test_arrays_follow_the_requests_through_growth_preemption_and_end(
    events: list[tuple[str, int]],
) -> None:
    driver = _Driver()
    for event, amount in events:
        if event == "start":
            driver.start(amount)
        elif event == "preempt":
            driver.preempt()
        elif event == "resume":
            driver.resume()
        elif event == "end":
            driver.end()
        driver.step(amount % 5, amount)


def test_longer_sequences_come_first_among_decodes() -> None:
    inputs = make_input_batch()
    requests = [make_request(name, length) for name, length in (("a", 3), ("b", 17), ("c", 9))]
    for i, request in enumerate(requests):
        request.num_computed_tokens = request.num_tokens - 1
        request.block_ids = list(range(i * 10, i * 10 + 5))
    batch = Batch([ScheduledRequest(request, 1) for request in requests])

    step = inputs.step_input(batch)

    assert step.layout.seq_lens.tolist() == [17, 9, 3]
    assert batch.wanting == [0, 1, 2]
    assert step.logits_rows.tolist() == [2, 0, 1]


def test_rows_are_given_back_when_sequences_end() -> None:
    inputs = make_input_batch()
    for generation in range(5):
        requests = [make_request(f"{generation}-{i}", 4) for i in range(MAX_NUM_SEQS)]
        for i, request in enumerate(requests):
            request.block_ids = [i]
        batch = Batch([ScheduledRequest(request, 4) for request in requests])
        check(inputs.step_input(batch), batch)
        for request in requests:
            request.status = RequestStatus.FINISHED
