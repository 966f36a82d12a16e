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

    def __call__(self, run: Callable[[], Tensor | None]) -> Callable[[], Tensor | None]:
        """Run the function twice, the second time only to record it."""
        self._side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._side):
            run()  # kernels are compiled and libraries take their workspace before the recording
        torch.cuda.current_stream().wait_stream(self._side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=self._side):
            output = run()

        def replay() -> Tensor | None:
            graph.replay()
            return output

        return replay
