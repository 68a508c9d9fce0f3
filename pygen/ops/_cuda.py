"""The needs of every CUDA launch: the extension, the current device and stream, a workspace, and torch's generator."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Protocol

import torch
from torch import Tensor

from pygen.backends import BackendError
from pygen.ops import _checks as checks
from pygen.rng import lock_of


def kernels() -> ModuleType:
    """Returns the extension with the kernels."""
    from pygen import _C

    return _C


@contextmanager
def on(device: torch.device) -> Iterator[tuple[int, int]]:
    """Makes `device` current; yields its index and the address of its current stream."""
    with torch.cuda.device(device):
        yield torch.cuda.current_device(), torch.cuda.current_stream().cuda_stream


class Plan(Protocol):
    """A plan of the extension with CUDA kernels."""

    def set_device(self, ordinal: int, /) -> int: ...
    def set_workspace(self, address: int, /) -> None: ...
    def launch_on(self, stream: int, /, *arguments: int) -> None: ...


class Launches:
    """Launches a plan of the extension on one device: `launches(*arguments)` calls `plan.launch_on(stream, ...)`.

    The workspace lives as long as the plan, so that a launch allocates nothing.
    """

    def __init__(self, plan: Plan, device: torch.device) -> None:
        self._plan = plan
        self._device = device
        with on(device) as (ordinal, _):
            size = plan.set_device(ordinal)
        self._workspace: Tensor = torch.zeros(size, dtype=torch.uint8, device=device)
        plan.set_workspace(self._workspace.data_ptr())

    def __call__(self, *arguments: int) -> None:
        with on(self._device) as (_, stream):
            self._plan.launch_on(stream, *arguments)


@contextmanager
def taken_noise(generator: torch.Generator, increment: int) -> Iterator[tuple[int, int]]:
    """Yields the seed and offset of a draw from torch's generator, and advances the generator past the draw.

    If the body, a launch, raises, the generator gets its earlier state. increment 0 draws nothing.
    """
    if increment == 0:
        yield 0, 0
        return
    if checks.is_captured(generator.device):
        raise BackendError(
            "rng='torch' cannot run while a CUDA graph captures the call, because its replays would repeat the noise: "
            "pass `seed`, or a state with a `generator_state`, which replays advance"
        )
    with lock_of(generator):
        seed, offset = generator.initial_seed(), generator.get_offset()
        yield seed, offset
        generator.set_offset(offset + increment)
