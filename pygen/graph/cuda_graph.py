"""Captured work: recorded once, run again without its Python."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch

Part = Callable[[], object]

# Arguments of `torch.compile`.
CompileOptions = dict[str, Any]

# Runs before a capture: kernels are chosen, compiled and loaded, and libraries make their workspaces.
_WARM_UPS = 2


class Capture(Protocol):
    """Work that was recorded by running it; `replay` runs it again, over the same tensors and in the same order.

    Recording may run it more than once, or let Python run without the device: whatever the work changes has to be put
    right before the first replay.
    """

    def replay(self) -> None: ...


class CudaGraph:
    """A CUDA graph; all those of one model take their memory from one `pool`, since they never run at once."""

    def __init__(self, parts: Sequence[Part], restore: Part, pool: Any) -> None:
        """Records `parts`, one after the other; `restore` puts right what a run of them changed.

        They must not read on the host. pool: of `new_pool`.
        """
        # cuBLAS keeps a workspace per stream. A workspace allocated during capture lives in the graph's pool and would
        # keep the pool alive.
        clear_workspaces = torch._C._cuda_clearCublasWorkspaces
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UPS):
                for part in parts:
                    part()
                restore()
        torch.cuda.current_stream().wait_stream(stream)
        clear_workspaces()
        self._graph = torch.cuda.CUDAGraph()
        try:
            # Other threads may go on with what a capture forbids.
            with torch.cuda.graph(self._graph, pool=pool, capture_error_mode="thread_local"):
                for part in parts:
                    part()
        finally:
            clear_workspaces()

    @staticmethod
    def new_pool() -> Any:
        return torch.cuda.graph_pool_handle()

    def replay(self) -> None:
        self._graph.replay()


class Launches:
    """What cannot be captured, launched again each time."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self._parts = parts

    def replay(self) -> None:
        for part in self._parts:
            part()


# By the type of the device that the work is for.
CAPTURES: dict[str, Any] = {"cuda": CudaGraph}
