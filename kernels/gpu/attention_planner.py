"""Makes the plan of a step from where its sequences lie."""

import numpy as np
import torch
from torch import Tensor

from kernels.attention_variant import cache_scales
from kernels.gpu import work_list
from kernels.gpu.attention_plan import DecodePlan, GpuAttentionPlan, PrefillPlan
from kernels.gpu.launch_config import prefill_config
from kernels.gpu.staging import StagingBuffer
from kernels.gpu.table_store import TableStore
from kernels.gpu.work_list import ITEM_LENGTH, WorkList
from kernels.layout import AttentionGeometry, IntArray, StepLayout
from kernels.workspace import Workspace

_PROGRAMS_PER_PROCESSOR = 2
_PROCESSORS_WITHOUT_GPU = 4
"""In the interpreter: few, so that programs have several items each."""


class GpuAttentionPlanner:
    """Plans the steps of one rank. A plan is good until the next one is made."""

    def __init__(
        self, geometry: AttentionGeometry, windows: frozenset[int | None], device: torch.device
    ) -> None:
        self._geometry = geometry
        self._windows = sorted(windows, key=lambda window: window or 0)
        self._workspace = Workspace(device)
        # Of padded steps, apart from that of others, which grows: graphs keep what they were
        # recorded with, and would keep a larger one the later they come.
        self._padded_output = Workspace(device)
        self._staging = StagingBuffer(device)
        self._store = TableStore(device)
        self._scales = cache_scales(geometry.is_float8, device)
        num_processors = _PROCESSORS_WITHOUT_GPU
        if device.type == "cuda":
            num_processors = torch.cuda.get_device_properties(device).multi_processor_count
        self._num_programs = _PROGRAMS_PER_PROCESSOR * num_processors

    def plan(self, layout: StepLayout) -> GpuAttentionPlan:
        """Plan one step."""
        geometry = self._geometry
        num_decodes = layout.num_decodes
        config = prefill_config(geometry.head_dim, geometry.dtype)
        cuts = self._cut_decodes(layout, num_decodes) if num_decodes else []
        tiles = work_list.cut_prefills(
            np.diff(layout.query_start_loc)[num_decodes:],
            layout.rows[num_decodes:],
            num_decodes,
            config.block_m // geometry.group_size,
        )
        arrays = [layout.slot_mapping, layout.query_start_loc, layout.seq_lens, tiles]
        for cut in cuts:
            arrays += [cut.work, cut.part_ranges]
        changes = self._store.changes(layout)
        uploaded = self._staging.upload([*arrays, *changes])
        slots, query_start_loc, seq_lens, tiles_there, *of_windows = uploaded[:-2]
        self._store.apply(*uploaded[-2:])
        prefill = PrefillPlan(query_start_loc, seq_lens, tiles_there) if len(tiles) else None
        decodes = self._decode_plans(of_windows, num_decodes) if num_decodes else {}
        return GpuAttentionPlan(
            geometry.scale,
            self._store.tables,
            slots,
            num_decodes,
            decodes,
            prefill,
            self._output(self._workspace, layout.num_tokens),
            self._scales,
        )

    def reserve(self, num_rows: int, max_blocks: int) -> None:
        """Make room for the block tables of all steps to come: they do not move any more."""
        self._store.reserve(num_rows, max_blocks)

    def pad(self, layout: StepLayout, num_rows: int) -> list[IntArray]:
        """Return what `plan_padded` needs on the device for a step of at most `num_rows` decodes.

        All but the last two arrays have shapes that depend on `num_rows` alone.
        """
        num_seqs = layout.num_seqs
        slots = np.full(num_rows, -1, dtype=np.int32)
        slots[:num_seqs] = layout.slot_mapping
        arrays: list[IntArray] = [slots]
        num_items = work_list.max_parts(num_rows, self._geometry.num_kv_heads, self._num_programs)
        for cut in self._cut_decodes(layout, num_seqs):
            work = np.zeros((1 + num_items, ITEM_LENGTH), dtype=np.int32)
            work[: len(cut.work)] = cut.work
            part_ranges = np.zeros((num_rows, 2), dtype=np.int32)
            part_ranges[:num_seqs] = cut.part_ranges
            arrays += [work, part_ranges]
        return [*arrays, *self._store.changes(layout)]

    def plan_padded(self, uploaded: list[Tensor], num_rows: int) -> GpuAttentionPlan:
        """Plan a step of decodes from what `pad` gave, on the device: the same for all such steps.

        Rows beyond the step's sequences are computed from anything and stored nowhere.
        """
        slots, *of_windows = uploaded[:-2]
        return GpuAttentionPlan(
            self._geometry.scale,
            self._store.tables,
            slots,
            num_rows,
            self._decode_plans(of_windows, num_rows),
            None,
            self._output(self._padded_output, num_rows),
            self._scales,
        )

    def apply_changes(self, uploaded: list[Tensor]) -> None:
        """Bring the block tables up to date with what `pad` gave, on the device."""
        self._store.apply(*uploaded[-2:])

    def _cut_decodes(self, layout: StepLayout, num_decodes: int) -> list[WorkList]:
        return [
            work_list.cut_decodes(
                layout.seq_lens[:num_decodes],
                layout.rows[:num_decodes],
                window,
                self._geometry.num_kv_heads,
                self._num_programs,
            )
            for window in self._windows
        ]

    def _decode_plans(
        self, of_windows: list[Tensor], num_decodes: int
    ) -> dict[int | None, DecodePlan]:
        geometry = self._geometry
        num_parts = work_list.max_parts(num_decodes, geometry.num_kv_heads, self._num_programs)
        shape = (num_parts, geometry.num_kv_heads, geometry.group_size)
        parts = self._workspace.take("parts", (*shape, geometry.head_dim), torch.float32)
        sums = self._workspace.take("part_sums", shape, torch.float32)
        pairs = zip(of_windows[::2], of_windows[1::2], strict=True)
        return {
            window: DecodePlan(work, part_ranges, parts, sums, self._num_programs)
            for window, (work, part_ranges) in zip(self._windows, pairs, strict=True)
        }

    def _output(self, workspace: Workspace, num_tokens: int) -> Tensor:
        geometry = self._geometry
        width = geometry.num_kv_heads * geometry.group_size * geometry.head_dim
        return workspace.take("attention_output", (num_tokens, width), geometry.dtype)
