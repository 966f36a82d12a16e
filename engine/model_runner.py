"""One rank of the model: weights, KV cache and what turns a step's integers into logits.

Knows nothing of requests; every rank of a group runs the same steps in the same order.
"""

import numpy as np
import torch
from torch import Tensor

from engine.block_copier import BlockCopier
from engine.compute_threads import ComputeThreads
from engine.decode_graphs import DecodeGraphs, PaddingPlanner, Record
from engine.graph_sizes import GraphSizes
from engine.kv_cache import allocate_kv_caches
from engine.latest_tokens import LatestTokens
from engine.models.decoder import Decoder
from engine.step_input import StepInput
from kernels import ops
from kernels.gpu.staging import StagingBuffer
from kernels.layout import AttentionGeometry, IntArray

_NOTHING = np.zeros(0, dtype=np.int32)


class ModelRunner:
    """Runs steps on one rank."""

    def __init__(
        self,
        decoder: Decoder,
        geometry: AttentionGeometry,
        rotations: Tensor,
        latest: LatestTokens,
        device: torch.device,
        threads: ComputeThreads,
        num_host_blocks: int = 0,
    ) -> None:
        """Allocate the KV cache and the host tier.

        Args:
            decoder: this rank's share of the model.
            geometry: shape of the cache.
            rotations: [positions, head_dim / 2] complex64, see engine/rotary.py.
            latest: stands in for unknown tokens.
            device: where all of it lives.
            threads: what computes, on CPU.
            num_host_blocks: blocks of the host tier; 0: none.
        """
        self._decoder = decoder
        self._rotations = rotations
        self._latest = latest
        self._device = device
        self._threads = threads
        self._kv_caches = allocate_kv_caches(geometry, len(decoder.layers), device)
        self._copier = BlockCopier(self._kv_caches, num_host_blocks)
        windows = frozenset(layer.attention.weights.window for layer in decoder.layers)
        self._planner = ops.attention_planner(geometry, windows, device)
        self._staging = StagingBuffer(device)
        self._graphs: DecodeGraphs | None = None
        self._drawn_rows: Tensor | None = None
        self.num_blocks = geometry.num_blocks
        self.num_host_blocks = num_host_blocks

    def reserve(self, max_num_seqs: int, max_blocks: int) -> None:
        """Make room for the block tables of all steps to come.

        Growing with the sequences they would move, and for each of their widths kernels would be
        compiled anew while requests wait.
        """
        if isinstance(self._planner, PaddingPlanner):
            self._planner.reserve(max_num_seqs, max_blocks)

    @torch.inference_mode()
    def record_graphs(self, record: Record, sizes: GraphSizes, max_blocks: int) -> None:
        """Run steps of decodes by graphs from now on, if the device has the kernels for it.

        Args:
            record: see engine/decode_graphs.py.
            sizes: what to record now and later, up to the most sequences of a step.
            max_blocks: of the longest sequence.
        """
        if isinstance(self._planner, PaddingPlanner):
            self._graphs = DecodeGraphs(
                self._decoder,
                self._rotations,
                self._latest,
                self._kv_caches,
                self._planner,
                record,
                sizes,
                max_blocks,
            )
            self._graphs.capture()

    def drop_graphs(self) -> None:
        """Free what was recorded: a group of ranks cannot be left while graphs use it."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        self._graphs = None

    @property
    def leaves_tokens(self) -> bool:
        """Whether tokens are drawn on the device and stay there, so that `keep_tokens` is due."""
        return isinstance(self._planner, PaddingPlanner)

    @torch.inference_mode()
    def keep_tokens(self, token_ids: Tensor | None) -> None:
        """Keep what was drawn from the last step where the next one finds it.

        Args:
            token_ids: [num_rows] int32; None on ranks other than 0.
        """
        if self._drawn_rows is not None and len(self._drawn_rows):
            self._latest.keep(self._drawn_rows, token_ids)

    @torch.inference_mode()
    def forward(self, step: StepInput) -> Tensor | None:
        """Compute a step: logits [num_rows, vocab] on rank 0; None elsewhere or for no row."""
        self._threads.place()
        if self._device.type == "cuda":
            torch.cuda.set_device(self._device)  # of this thread: kernels are launched on it
        if self._graphs is not None and self._graphs.takes(step):
            self._copier.apply(step.moves)
            logits, self._drawn_rows = self._graphs.forward(step)
            return logits
        plan = self._planner.plan(step.layout)
        has_unknown = step.token_ids.min() < 0
        arrays = [step.token_ids, step.positions, step.logits_rows]
        if self.leaves_tokens:
            arrays += [step.drawn_rows, step.token_rows if has_unknown else _NOTHING]
        token_ids, positions, logits_rows, *rows = self._staging.upload(arrays)
        if has_unknown:
            token_ids = self._latest.fill(token_ids, rows[1])
        self._drawn_rows = rows[0] if rows else None
        return self._decoder.forward(
            token_ids,
            self._rotations[positions],
            self._copier.caches(step.moves),
            plan,
            None if _are_all(step.logits_rows, len(step.token_ids)) else logits_rows,
        )


def _are_all(rows: IntArray, num_tokens: int) -> bool:
    return len(rows) == num_tokens and np.array_equal(rows, np.arange(num_tokens))
