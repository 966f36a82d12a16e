"""The engine: takes requests, runs steps, tells how it is.

The only owner of scheduler state, so it must be used from one thread at a time; EngineLoop gives
it a thread of its own. Knows nothing of models, tensors or text.
"""

import heapq
import secrets
import time
from collections.abc import Callable

from engine.admission import Admission
from engine.block_pool import BlockPool
from engine.config import EngineConfig
from engine.errors import InvalidRequest, Overloaded
from engine.executor import Executor
from engine.host_tier import HostTier
from engine.output import DEADLINE_PASSED, FinishReason, StepOutput, TokenOutput
from engine.output_length import OutputLengths
from engine.request import GenerateRequest, Request
from engine.scheduler import Scheduler
from engine.snapshot import EngineSnapshot
from engine.step_limit import StepLimit
from engine.step_pipeline import StepPipeline
from engine.step_time import StepTimeFit

_EPOCH_BYTES = 8
_MIN_RETRY_AFTER_S = 1.0
_MAX_RETRY_AFTER_S = 60.0
_MIN_DEADLINES = 1024


class EngineCore:
    """One model on one tensor-parallel group."""

    def __init__(
        self,
        config: EngineConfig,
        executor: Executor,
        *,
        max_model_len: int,
        eos_token_ids: frozenset[int],
        vocab_size: int,
        step_time: StepTimeFit | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config = config
        self._executor = executor
        host = HostTier(executor.num_host_blocks) if executor.num_host_blocks else None
        self._pool = BlockPool(
            executor.num_blocks, config.block_size, config.enable_prefix_caching, host
        )
        self._step_time = step_time or StepTimeFit()
        self._scheduler = Scheduler(config, self._pool, self._step_time, OutputLengths())
        self._step_limit = StepLimit(self._step_time)
        self._pipeline = StepPipeline(executor, self._step_limit.begin)
        self._admission = Admission(
            config,
            max_model_len=max_model_len,
            eos_token_ids=eos_token_ids,
            vocab_size=vocab_size,
            num_blocks=executor.num_blocks,
        )
        self._clock = clock
        # (deadline, request id, choice): those that have ended meanwhile are left in it.
        self._deadlines: list[tuple[float, str, int]] = []
        self._max_deadlines = _MIN_DEADLINES
        self._live: dict[str, dict[int, Request]] = {}
        self._epoch = secrets.token_hex(_EPOCH_BYTES)
        self._num_snapshots = 0
        self._num_steps = 0
        self._busy_since: float | None = None

    @property
    def has_work(self) -> bool:
        """Whether a step would compute something."""
        return self._scheduler.has_work

    @property
    def step_age_s(self) -> float:
        """Seconds without progress: since the last step or since work came; 0 when idle.

        May be read from any thread, also while a step hangs.
        """
        busy_since = self._busy_since
        return 0.0 if busy_since is None else max(0.0, self._clock() - busy_since)

    @property
    def max_model_len(self) -> int:
        """Longest prompt plus output."""
        return self._admission.max_model_len

    @property
    def step_limit_s(self) -> float:
        """Age of a step beyond which it is held to hang. May be read from any thread."""
        return self._step_limit.seconds

    def add(self, request: GenerateRequest) -> None:
        """Take a request; if it raises, nothing has changed.

        Raises InvalidRequest, PromptTooLong, Overloaded.
        """
        if request.request_id in self._live:
            raise InvalidRequest(
                f"Request id '{request.request_id}' is in use.",
                "Give every request an id of its own.",
                param="request_id",
            )
        now = self._clock()
        sequences = self._admission.expand(request, now)
        self._check_room(len(sequences))
        num_prompt_blocks = len(request.prompt_token_ids) // self._config.block_size
        for sequence in sequences:
            # All have the same prompt: its hashes are made once, for the first.
            sequence.block_hashes += sequences[0].block_hashes[:num_prompt_blocks]
            self._scheduler.add(sequence, now)
            if sequence.deadline is not None:
                place = (sequence.deadline, sequence.request_id, sequence.choice_index)
                heapq.heappush(self._deadlines, place)
        self._live[request.request_id] = {s.choice_index: s for s in sequences}
        self._drop_old_deadlines()
        if self._busy_since is None:
            self._busy_since = now

    def abort(self, request_id: str, choice_index: int | None = None) -> list[TokenOutput]:
        """End a request, or one choice of it, and free its blocks; unknown ones are ignored."""
        choices = self._live.get(request_id, {})
        if choice_index is None:
            aborted = list(choices.values())
        else:
            aborted = [choices[choice_index]] if choice_index in choices else []
        outputs = [self._end(sequence, FinishReason.ABORT) for sequence in aborted]
        if not self.has_work:
            self._busy_since = None
        return outputs

    def abort_all(self) -> list[TokenOutput]:
        """End every request."""
        return [output for request_id in list(self._live) for output in self.abort(request_id)]

    def step(self) -> StepOutput:
        """Run one step; whatever the executor raises goes out, and the engine is then lost."""
        if not self.has_work:
            return StepOutput([], 0, 0)
        started = self._clock()
        expired = self._expire(started)
        if expired and not self.has_work:
            self._busy_since = None
            return StepOutput(expired, 0, 0)
        batch, work, tokens = self._pipeline.step(self._scheduler, started)
        outputs = self._scheduler.update(batch, tokens, self._clock())
        for output in outputs:
            if output.finish_reason is not None:
                self._forget(output)
        ended = self._clock()
        self._step_time.observe(work, ended - started)
        self._step_limit.end(work)
        self._num_steps += 1
        self._busy_since = ended if self.has_work else None
        return StepOutput(
            expired + outputs, batch.num_tokens, len(batch.requests), self._pool.log.take()
        )

    def snapshot(self) -> EngineSnapshot:
        """Describe the engine as it is now."""
        pool = self._pool
        scheduler = self._scheduler
        counts = scheduler.counts
        self._num_snapshots += 1
        return EngineSnapshot(
            epoch=self._epoch,
            sequence=self._num_snapshots,
            block_size=pool.block_size,
            num_blocks=pool.num_blocks,
            num_free_blocks=pool.num_free_blocks,
            num_evictable_blocks=pool.num_evictable_blocks,
            num_waiting=scheduler.num_waiting,
            num_running=scheduler.num_running,
            num_queued_prefill_tokens=scheduler.num_queued_prefill_tokens,
            num_steps=self._num_steps,
            step_age_s=self.step_age_s,
            step_limit_s=self.step_limit_s,
            step_time_s=self._step_time.coefficients,
            num_preemptions=counts.num_preemptions,
            num_lost_tokens=counts.num_lost_tokens,
            num_host_blocks=pool.host.num_blocks if pool.host else 0,
            num_used_host_blocks=pool.host.num_used_blocks if pool.host else 0,
            num_prompt_tokens=counts.num_prompt_tokens,
            num_generated_tokens=counts.num_generated_tokens,
            num_cache_queried_tokens=counts.num_cache_queried_tokens,
            num_cache_hit_tokens=counts.num_cache_hit_tokens,
            max_model_len=self.max_model_len,
            max_num_seqs=self._config.max_num_seqs,
        )

    def shutdown(self) -> None:
        """Release the executor; the core is of no use afterwards."""
        self._executor.shutdown()

    def _check_room(self, num_sequences: int) -> None:
        num_waiting = self._scheduler.num_waiting
        # With nobody waiting any request is taken: it could not do better later.
        if not num_waiting or num_waiting + num_sequences <= self._config.max_num_waiting:
            return
        _, _, s_per_token = self._step_time.coefficients
        expected_s = s_per_token * self._scheduler.num_queued_prefill_tokens
        raise Overloaded(
            f"{num_waiting} requests are waiting already.",
            "Try again later, or add replicas.",
            min(max(expected_s, _MIN_RETRY_AFTER_S), _MAX_RETRY_AFTER_S),
        )

    def _drop_old_deadlines(self) -> None:
        """Keep those that have ended from piling up, when deadlines are far ahead."""
        if len(self._deadlines) <= self._max_deadlines:
            return
        live = [sequence for choices in self._live.values() for sequence in choices.values()]
        self._deadlines = [
            (s.deadline, s.request_id, s.choice_index) for s in live if s.deadline is not None
        ]
        heapq.heapify(self._deadlines)
        self._max_deadlines = max(_MIN_DEADLINES, 2 * len(self._deadlines))

    def _expire(self, now: float) -> list[TokenOutput]:
        """Give up the requests whose deadline has passed."""
        outputs = []
        while self._deadlines and self._deadlines[0][0] <= now:
            deadline, request_id, choice_index = heapq.heappop(self._deadlines)
            sequence = self._live.get(request_id, {}).get(choice_index)
            # Another request may have come under the same id.
            if sequence is not None and sequence.deadline == deadline:
                outputs.append(self._end(sequence, FinishReason.ERROR, DEADLINE_PASSED))
        return outputs

    def _end(
        self, sequence: Request, reason: FinishReason, error: str | None = None
    ) -> TokenOutput:
        self._scheduler.end(sequence, reason)
        output = TokenOutput(
            sequence.request_id,
            sequence.choice_index,
            sequence.num_output_tokens,
            [],
            finish_reason=reason,
            num_cached_tokens=sequence.num_cached_tokens,
            error=error,
        )
        self._forget(output)
        return output

    def _forget(self, output: TokenOutput) -> None:
        choices = self._live[output.request_id]
        del choices[output.choice_index]
        if not choices:
            del self._live[output.request_id]
