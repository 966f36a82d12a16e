"""Stand-ins that are stricter than what they replace."""

import threading
import zlib
from collections import Counter
from collections.abc import Callable

from engine.batch import Batch, SampledToken
from engine.block_move import BlockMove, MoveKind
from engine.executor import Computed
from engine.output import TokenLogprob
from engine.output_length import OutputLengths
from engine.request import UNKNOWN_TOKEN, GenerateRequest, Request

_MODULUS = (1 << 61) - 1
_MULTIPLIER = 1_000_003


class FakeClock:
    """A clock that stands still until told otherwise."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.now += seconds


def expect_short_outputs(lengths: OutputLengths) -> None:
    """Make the forecast so hopeful that requests are admitted which cannot all end."""
    for _ in range(2000):
        lengths.observe(1)


class FakeModel:
    """A "model" whose next token depends on every token before it, on salt, seed and choice."""

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size

    def start(self, cache_salt: str) -> int:
        """Return the state before the first token."""
        return zlib.crc32(cache_salt.encode())

    def advance(self, state: int, token_id: int) -> int:
        """Return the state after one more token."""
        return (state * _MULTIPLIER + token_id + 1) % _MODULUS

    def draw(self, state: int, seed: int | None, choice_index: int) -> int:
        """Return the token that follows."""
        mixed = (state + (seed or 0) * 7919 + choice_index * 104_729) * _MULTIPLIER % _MODULUS
        return (mixed >> 17) % self.vocab_size

    def generate(
        self, request: GenerateRequest, choice_index: int, max_tokens: int, stops: frozenset[int]
    ) -> list[int]:
        """Return the whole output of one choice: the oracle, without batch, blocks or cache."""
        state = self.start(request.cache_salt)
        for token_id in request.prompt_token_ids:
            state = self.advance(state, token_id)
        output: list[int] = []
        while len(output) < max_tokens and not (output and output[-1] in stops):
            output.append(self.draw(state, request.params.seed, choice_index))
            state = self.advance(state, output[-1])
        return output


class FakeExecutor:
    """Runs FakeModel over a simulated KV cache and checks all it reads and writes.

    Each slot of the cache holds the model's state after the token of that slot, which depends on
    the whole prefix (and the salt). Before it computes a chunk, the executor compares every
    earlier slot, found through `block_ids`, with the true state: a block that was shared, reused
    or overwritten wrongly, or never computed, shows at once.
    """

    def __init__(
        self,
        num_blocks: int,
        block_size: int,
        *,
        vocab_size: int = 1000,
        num_host_blocks: int = 0,
        on_execute: Callable[[Batch], None] | None = None,
        is_overlapping: bool = False,
    ) -> None:
        self.model = FakeModel(vocab_size)
        self.num_steps_ahead = 0
        self._is_overlapping = is_overlapping
        self._last_tokens: dict[Request, int] = {}
        self.num_steps = 0
        self.num_computed_tokens = 0
        self.is_shut_down = False
        self._num_blocks = num_blocks
        self._block_size = block_size
        self._on_execute = on_execute
        self._cache: list[list[int | None]] = [[None] * block_size for _ in range(num_blocks)]
        self._host: list[list[int | None]] = [[None] * block_size for _ in range(num_host_blocks)]
        self.num_moves = Counter[MoveKind]()
        self._true_states: dict[Request, list[int]] = {}

    @property
    def num_blocks(self) -> int:
        """KV blocks of the simulated cache."""
        return self._num_blocks

    @property
    def num_host_blocks(self) -> int:
        """Blocks of the simulated host tier."""
        return len(self._host)

    def submit(self, batch: Batch) -> Computed:
        """Compute the batch at once; the next may follow if we overlap."""
        return Computed(self.execute(batch), self._is_overlapping)

    def execute(self, batch: Batch) -> list[SampledToken | None]:
        """Compute the batch; AssertionError names what the scheduler did wrong."""
        if self._on_execute is not None:
            self._on_execute(batch)
        check_batch_order(batch)
        self._check_no_slot_is_written_twice(batch)
        for move in batch.moves:
            self._move(move)
        self.num_steps += 1
        self.num_computed_tokens += batch.num_tokens
        if len(self._true_states) > 2 * len(batch.requests) + 64:
            live = {r: s for r, s in self._true_states.items() if r.finish_reason is None}
            self._true_states = live
        self.num_steps_ahead += any(s.request.num_unknown_tokens for s in batch.requests)
        wanting = set(batch.wanting)
        tokens = [
            self._run(batch.requests[i].request, _chunk(batch, i), i in wanting)
            for i in range(len(batch.requests))
        ]
        self._last_tokens = {
            scheduled.request: token.token_id
            for scheduled, token in zip(batch.requests, tokens, strict=True)
            if token is not None
        }
        return tokens

    def shutdown(self) -> None:
        """Note that it was called, and that it was called once."""
        assert not self.is_shut_down
        self.is_shut_down = True

    def _move(self, move: BlockMove) -> None:
        self.num_moves[move.kind] += 1
        come_from = self._host if move.kind is MoveKind.RESTORE else self._cache
        go_to = self._host if move.kind is MoveKind.SAVE else self._cache
        go_to[move.target] = list(come_from[move.source])

    def _check_no_slot_is_written_twice(self, batch: Batch) -> None:
        written = [
            self._slot(scheduled.request, position)
            for i, scheduled in enumerate(batch.requests)
            for position in _chunk(batch, i)
        ]
        assert len(set(written)) == len(written), "two sequences write the same slot"

    def _run(self, request: Request, chunk: range, is_wanted: bool) -> SampledToken | None:
        states = self._extend_true_states(request)
        for position in range(chunk.start):
            block_id, offset = self._slot(request, position)
            assert self._cache[block_id][offset] == states[position], (
                f"{request.request_id}: position {position} reads block {block_id}, "
                "which does not hold this sequence"
            )
        for position in chunk:
            block_id, offset = self._slot(request, position)
            self._cache[block_id][offset] = states[position]
        if not is_wanted:
            return None
        token_id = self.model.draw(states[-1], request.params.seed, request.choice_index)
        has_logprob = request.params.logprobs is not None
        return SampledToken(token_id, TokenLogprob(token_id, -1.0) if has_logprob else None)

    def _extend_true_states(self, request: Request) -> list[int]:
        states = self._true_states.setdefault(request, [])
        state = states[-1] if states else self.model.start(request.cache_salt)
        for token_id in request.token_ids[len(states) :]:
            if token_id == UNKNOWN_TOKEN:
                token_id = self._last_tokens[request]
            state = self.model.advance(state, token_id)
            states.append(state)
        return states

    def _slot(self, request: Request, position: int) -> tuple[int, int]:
        return request.block_ids[position // self._block_size], position % self._block_size


class Gate:
    """Holds the step thread inside `execute` until opened; pass `wait` as `on_execute`."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self._opened = threading.Event()

    def open(self) -> None:
        """Let this step and all later ones pass."""
        self._opened.set()

    def wait(self, batch: Batch) -> None:
        """Report that a step is under way and wait."""
        self.entered.set()
        assert self._opened.wait(timeout=30), "the test never opened the gate"


def check_batch_order(batch: Batch) -> None:
    """Assert the contract of Batch: no sequence twice, no empty chunk, single tokens first."""
    counts = [scheduled.num_scheduled_tokens for scheduled in batch.requests]
    assert all(count >= 1 for count in counts)
    assert counts == sorted(counts, key=lambda count: count > 1)
    assert len({scheduled.request for scheduled in batch.requests}) == len(counts)


def _chunk(batch: Batch, i: int) -> range:
    start = batch.starts[i]
    return range(start, start + batch.requests[i].num_scheduled_tokens)
