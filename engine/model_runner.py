"""One rank of the model: weights, KV cache and what turns a step's integers into logits.

Knows nothing of requests; every rank of a group runs the same steps in the same order.
"""

import numpy as np
import torch
from torch import Tensor

from engine.block_copier import BlockCopier
from engine.compute_threads import ComputeThreads
from engine.decode_graphs import DecodeGraphs, PaddingPlanner, Record
from engine.kv_cache import allocate_kv_caches
from engine.models.decoder import Decoder
from engine.step_input import StepInput
from kernels import ops
from kernels.layout import AttentionGeometry


class ModelRunner:
    """Runs steps on one rank."""

    def __init__(
        self,
        decoder: Decoder,
        geometry: AttentionGeometry,
        rotations: Tensor,
        device: torch.device,
        threads: ComputeThreads,
        num_host_blocks: int = 0,
    ) -> None:
        """Allocate the KV cache and the host tier.

        Args:
            decoder: this rank's share of the model.
            geometry: shape of the cache.
            rotations: [positions, head_dim / 2] complex64, see engine/rotary.py.
            device: where all of it lives.
            threads: what computes, on CPU.
            num_host_blocks: blocks of the host tier; 0: none.
        """
        self._decoder = decoder
        self._rotations = rotations
        self._device = device
        self._threads = threads
        self._kv_caches = allocate_kv_caches(geometry, len(decoder.layers), device)
        self._copier = BlockCopier(self._kv_caches, num_host_blocks)
        windows = frozenset(layer.attention.weights.window for layer in decoder.layers)
        self._planner = ops.attention_planner(geometry, windows, device)
        self._graphs: DecodeGraphs | None = None
        self.num_blocks = geometry.num_blocks
        self.num_host_blocks = num_host_blocks

    @torch.inference_mode()
    def record_graphs(self, record: Record, *, max_num_seqs: int, max_blocks: int) -> None:
        """Run steps of decodes by graphs from now on, if the device has the kernels for it.

        Args:
            record: see engine/decode_graphs.py.
            max_num_seqs: of a step.
            max_blocks: of the longest sequence.
        """
        if isinstance(self._planner, PaddingPlanner):
            self._graphs = DecodeGraphs(
                self._decoder,
                self._rotations,
                self._kv_caches,
                self._planner,
                record,
                max_num_seqs=max_num_seqs,
                max_blocks=max_blocks,
            )
            self._graphs.capture()

    def drop_graphs(self) -> None:
        """Free what was recorded: a group of ranks cannot be left while graphs use it."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        self._graphs = None

    def keeps_tokens(self, step: StepInput) -> bool:
        """Whether a step's tokens can stay on the device, where the next decodes find them."""
        return self._graphs is not None and self._graphs.takes(step)

    @torch.inference_mode()
    def keep_tokens(self, token_ids: Tensor) -> None:
        """Keep what was drawn from the last step of decodes, int32 on the device: -1 stands for it.

        It must have been one that a graph ran, see `decode_graphs.DecodeGraphs.takes`.
        """
        assert self._graphs is not None
        self._graphs.keep(token_ids)

    @torch.inference_mode()
    def forward(self, step: StepInput) -> Tensor | None:
        """Compute a step: logits [num_rows, vocab] on rank 0; None elsewhere or for no row."""
        self._threads.place()
        self._copier.apply(step.moves)
        if self._graphs is not None and self._graphs.takes(step):
            return self._graphs.forward(step)
        plan = self._planner.plan(step.layout)
        rotation = self._rotations[self._to_device(step.positions)]
        return self._decoder.forward(
            self._to_device(step.token_ids),
            rotation,
            self._kv_caches,
            plan,
            self._logits_rows(step),
        )

    def _logits_rows(self, step: StepInput) -> Tensor | None:
        rows = step.logits_rows
        if len(rows) == len(step.token_ids) and np.array_equal(rows, np.arange(len(rows))):
            return None
        return self._to_device(rows)

    def _to_device(self, array: np.ndarray) -> Tensor:
        tensor = torch.from_numpy(array)
        if self._device.type != "cuda":
            return tensor.to(self._device)
        # From other memory a copy waits for all that was launched before it.
        return tensor.pin_memory().to(self._device, non_blocking=True)
