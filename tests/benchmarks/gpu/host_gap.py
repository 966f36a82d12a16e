"""What a step of the engine takes beyond the time that the device is busy with it."""

import statistics
import time

from engine.batch import Batch
from engine.core import EngineCore
from engine.executor import Submission
from engine.request import GenerateRequest
from engine.sampling_params import SamplingParams
from tests.benchmarks.gpu.bench import Bench, Rows
from tests.benchmarks.gpu.device import Event

_WARM_UPS = 5


def measure_host_gap(bench: Bench, name: str, core: EngineCore) -> Rows:
    """Yield a row for each number of sequences that decode together."""
    for num_seqs in bench.sizes.engine_batches:
        submissions = _Submissions(bench, core)
        try:
            _begin_decodes(bench, core, num_seqs)
            submissions.have_head_start = True
            _seconds_per_step(bench, core)
            busy_s = submissions.device_seconds
            submissions.have_head_start = False
            step_s = _seconds_per_step(bench, core)
        finally:
            submissions.restore()
            core.abort_all()
        yield {
            "what": f"{name} engine step, {num_seqs} sequences",
            "ms": step_s * 1e3,
            "device ms": busy_s * 1e3,
            "host gap ms": (step_s - busy_s) * 1e3,
            "tokens/s": num_seqs / step_s,
        }


def _begin_decodes(bench: Bench, core: EngineCore, num_seqs: int) -> None:
    """Bring so many requests past their prompts."""
    # Twice as many tokens as steps are timed: the first have some while the last are prefilled.
    num_tokens = 4 * (bench.sizes.num_engine_steps + _WARM_UPS)
    params = SamplingParams(temperature=0, max_tokens=num_tokens, ignore_eos=True)
    for i, prompt in enumerate(bench.sizes.prompts(num_seqs)):
        core.add(GenerateRequest(request_id=str(i), prompt_token_ids=prompt, params=params))
    snapshot = core.snapshot()
    while snapshot.num_waiting or snapshot.num_queued_prefill_tokens:
        core.step()
        snapshot = core.snapshot()


def _seconds_per_step(bench: Bench, core: EngineCore) -> float:
    for _ in range(_WARM_UPS):
        core.step()
    started = time.perf_counter()
    for _ in range(bench.sizes.num_engine_steps):
        core.step()
    return (time.perf_counter() - started) / bench.sizes.num_engine_steps


class _Submissions:
    """Times what the executor of a core launches for each step."""

    def __init__(self, bench: Bench, core: EngineCore) -> None:
        self.have_head_start = False
        """Whether a step waits until all of it is launched."""
        self._bench = bench
        self._executor = core._pipeline._executor
        self._submit = self._executor.submit
        self._events: list[tuple[Event, Event]] = []
        self._executor.submit = self._timed  # type: ignore[method-assign]

    @property
    def device_seconds(self) -> float:
        """Median of the steps that had a head start, without the first ones."""
        self._bench.device.synchronize()
        pairs = self._events[_WARM_UPS:]
        return statistics.median(start.elapsed_time(end) for start, end in pairs) / 1e3

    def restore(self) -> None:
        """Leave the executor as it was."""
        self._executor.submit = self._submit  # type: ignore[method-assign]

    def _timed(self, batch: Batch) -> Submission:
        if not self.have_head_start:
            return self._submit(batch)
        device = self._bench.device
        device.head_start()
        start, end = device.event(), device.event()
        start.record()
        submission = self._submit(batch)
        end.record()
        self._events.append((start, end))
        return submission
