"""Captured work: recorded once, run again without its Python."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch

from pygen.graph.recording import Pool, record, recording

Part = Callable[[], object]

# Arguments of `torch.compile`.
CompileOptions = dict[str, Any]

# Runs before a capture: kernels are chosen, compiled and loaded, and libraries make their workspaces.
_WARM_UPS = 2
_CURRENT = torch.device("cuda")


class Capture(Protocol):
    """Work that was recorded by running it; `replay` runs it again, over the same tensors and in the same order.

    Recording may run it more than once, or let Python run without the device: whatever the work changes has to be put
    right before the first replay.
    """

    def replay(self) -> None: ...


class CudaGraph:
    """A CUDA graph on the device of `pool`."""

    def __init__(self, parts: Sequence[Part], restore: Part, pool: Pool) -> None:
        """Records `parts`, one after the other; `restore` puts right what a run of them changed.

        They must not read on the host. Raises their errors, and RuntimeError where they launch nothing on the device.
        """
        # cuBLAS keeps a workspace per stream. A workspace allocated during capture lives in the graph's pool and would
        # keep the pool alive.
        clear_workspaces = torch._C._cuda_clearCublasWorkspaces
        self._device = pool.device
        with recording(pool.device) as stream:
            for _ in range(_WARM_UPS):
                for part in parts:
                    part()
                restore()
            clear_workspaces()
            try:
                self._graph = record(parts, pool, stream)
            finally:
                clear_workspaces()

    @staticmethod
    def new_pool(device: torch.device = _CURRENT) -> Pool:
        return Pool(device)

    def replay(self) -> None:
        with torch.cuda.device(self._device):
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
