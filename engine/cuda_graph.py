"""Records CUDA graphs that share their memory."""

from collections.abc import Callable

import torch
from torch import Tensor


class GraphRecorder:
    """Records what functions launch on the current device; see `decode_graphs.Record`.

    Only one of its graphs may be in use at a time: each overwrites what the others computed.
    """

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()
        # One for all: libraries keep a workspace for each stream they have seen.
        self._side = torch.cuda.Stream()
        # What a graph returned from their memory would stay there, as often as there are graphs.
        self._output: Tensor | None = None

    def __call__(self, run: Callable[[], Tensor | None]) -> Callable[[], Tensor | None]:
        """Run the function twice, the second time only to record it.

        Args:
            run: returns [rows, columns], all functions the same columns, the first the most rows.
        """
        self._side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._side):
            # Kernels are compiled and libraries take their workspace before the recording.
            output = run()
        torch.cuda.current_stream().wait_stream(self._side)
        if output is not None and self._output is None:
            self._output = torch.empty_like(output)
        kept = None if output is None or self._output is None else self._output[: len(output)]
        del output
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=self._side):
            output = run()
            if kept is not None and output is not None:
                kept.copy_(output)
        del output

        def replay() -> Tensor | None:
            graph.replay()
            return kept

        return replay
