"""Copies of tensors on the host, queued behind the work on a GPU that makes them."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from torch import Tensor


class HostCopy:
    """Queues copies of `tensors`; `wait()` returns them once they are there, while later work may go on.

    Tensors on the host are returned as they are.
    """

    def __init__(self, tensors: Sequence[Tensor | None]) -> None:
        self._tensors = [*tensors]
        self._arrived: torch.cuda.Event | None = None
        on_gpu = [tensor for tensor in tensors if tensor is not None and tensor.device.type == "cuda"]
        if on_gpu:
            self._tensors = [None if tensor is None else _queued(tensor) for tensor in tensors]
            self._arrived = torch.cuda.Event()
            self._arrived.record(torch.cuda.current_stream(on_gpu[0].device))

    def wait(self) -> list[Tensor | None]:
        # A blocking call would add its wake-up time to every token.
        while self._arrived is not None and not self._arrived.query():
            time.sleep(0)
        return self._tensors


def _queued(tensor: Tensor) -> Tensor:
    if tensor.device.type != "cuda":
        return tensor
    copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True, device="cpu")
    return copy.copy_(tensor, non_blocking=True)
