"""Runs steps of decodes by replaying graphs of kernels recorded once for some numbers of rows.

A decode step launches some hundred kernels, and launching them one by one takes longer than they
run. Everything that changes from step to step is data at fixed addresses: token ids, positions,
slots and the list of attention work come in one copy, block tables by what changed. Which numbers
of rows are recorded, and when, is for engine/graph_sizes.py.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol, runtime_checkable

import numpy as np
from torch import Tensor

from engine.graph_sizes import GraphSizes
from engine.latest_tokens import LatestTokens
from engine.models.decoder import Decoder
from engine.step_input import StepInput
from kernels.gpu.attention_plan import GpuAttentionPlan
from kernels.gpu.staging import StagingBuffer
from kernels.layout import IntArray, StepLayout


@runtime_checkable
class PaddingPlanner(Protocol):
    """What is asked of the attention planner, see `kernels.gpu.attention_planner`."""

    def reserve(self, num_rows: int, max_blocks: int) -> None: ...  # noqa: D102  as there

    def pad(self, layout: StepLayout, num_rows: int) -> list[IntArray]: ...  # noqa: D102

    def plan_padded(self, uploaded: list[Tensor], num_rows: int) -> GpuAttentionPlan: ...  # noqa: D102

    def apply_changes(self, uploaded: list[Tensor]) -> None: ...  # noqa: D102


Record = Callable[[Callable[[], Tensor | None]], Callable[[], Tensor | None]]
"""Records what a function launches; what it returns launches the same again, on the same data."""


_NUM_INPUTS = 5
_DRAWN_ROWS = 4


@dataclass(frozen=True, slots=True)
class _Graph:
    replay: Callable[[], Tensor | None]
    plan: GpuAttentionPlan
    """Kept because its memory is what the graph reads."""


class DecodeGraphs:
    """The graphs of one rank."""

    def __init__(
        self,
        decoder: Decoder,
        rotations: Tensor,
        latest: LatestTokens,
        kv_caches: list[Tensor],
        planner: PaddingPlanner,
        record: Record,
        sizes: GraphSizes,
        max_blocks: int,
    ) -> None:
        """Reserve memory; nothing is recorded yet.

        Args:
            decoder: this rank's share of the model.
            rotations: [positions, head_dim / 2] complex64.
            latest: stands in for unknown tokens.
            kv_caches: of each layer.
            planner: of the same caches.
            record: on CUDA, an `engine.cuda_graph.GraphRecorder`.
            sizes: chooses the graph of each step, the same on every rank.
            max_blocks: of the longest sequence.
        """
        self._decoder = decoder
        self._rotations = rotations
        self._latest = latest
        self._kv_caches = kv_caches
        self._planner = planner
        self._record = record
        self._graphs: dict[int, _Graph] = {}
        self._sizes = sizes
        self._staging = StagingBuffer(rotations.device)
        fixed = [*_inputs(_IDLE, sizes.largest), *planner.pad(_IDLE.layout, sizes.largest)]
        # Room for what changes if every entry of every block table did.
        changes = 2 * sizes.largest * max_blocks
        self._staging.reserve(sum(array.size for array in fixed) + changes + 4 * len(fixed))

    def capture(self) -> None:
        """Record the first sizes, the largest first: all others fit in the memory it took."""
        for size in self._sizes.recorded:
            self._graph(size)

    def takes(self, step: StepInput) -> bool:
        """Whether a graph can run this step: one token of each sequence and one row wanted."""
        layout = step.layout
        num_rows = len(step.logits_rows)
        return layout.num_seqs == layout.num_tokens == num_rows <= self._sizes.largest

    def forward(self, step: StepInput) -> tuple[Tensor | None, Tensor]:
        """Run a step; now and then record a graph first, which no other step notices.

        Returns logits [num_seqs, vocab] in the order of `step.logits_rows`, None on ranks other
        than 0, and `step.drawn_rows` on the device. Both are good until the next step.
        """
        num_seqs = step.layout.num_seqs
        size = self._sizes.choose(num_seqs)
        graph = self._graph(size)
        drawn_rows = self._upload(step, size)[_DRAWN_ROWS]
        logits = graph.replay()
        return None if logits is None else logits[:num_seqs], drawn_rows[:num_seqs]

    def _graph(self, size: int) -> _Graph:
        if size not in self._graphs:
            uploaded = self._upload(_IDLE, size)
            token_ids, positions, rows, logits_rows, _ = uploaded[:_NUM_INPUTS]
            planned = uploaded[_NUM_INPUTS:]
            plan = self._planner.plan_padded(planned, size)

            def run() -> Tensor | None:
                known = self._latest.fill(token_ids, rows)
                rotation = self._rotations[positions]
                return self._decoder.forward(known, rotation, self._kv_caches, plan, logits_rows)

            self._graphs[size] = _Graph(self._record(run), plan)
        return self._graphs[size]

    def _upload(self, step: StepInput, size: int) -> list[Tensor]:
        """Bring a step to the addresses that the graph of this size reads."""
        inputs = _inputs(step, size)
        uploaded = self._staging.upload([*inputs, *self._planner.pad(step.layout, size)])
        self._planner.apply_changes(uploaded)
        return uploaded


def _inputs(step: StepInput, size: int) -> list[IntArray]:
    """Return what changes from step to step, each array padded with 0."""
    rows = step.layout.rows
    arrays = (step.token_ids, step.positions, rows, step.logits_rows, step.drawn_rows)
    padded = np.zeros((len(arrays), size), dtype=np.int32)
    for row, array in zip(padded, arrays, strict=True):
        row[: len(array)] = array
    return list(padded)


def _idle_step() -> StepInput:
    """One sequence that stores nothing and reads a block that may hold anything."""
    zero, one = np.zeros(1, dtype=np.int32), np.ones(1, dtype=np.int32)
    starts = np.array([0, 1], dtype=np.int32)
    layout = StepLayout(starts, one, zero[:, None], slot_mapping=-one, rows=zero, grown=zero[:0])
    return StepInput(token_ids=zero, positions=zero, logits_rows=zero, layout=layout)


_IDLE: Final = _idle_step()
