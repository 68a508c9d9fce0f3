"""Keeps processes that share the weights of one model in step: each runs the same number of forwards."""

from __future__ import annotations

from types import TracebackType

import torch
import torch.distributed as dist

from pygen.models.adapter import ModelAdapter


def resolve_synced_gpus(synced_gpus: bool | None, model: object) -> bool:
    """Whether the forwards of a call must keep step with those of other processes.

    The default is True where a forward gathers weights from other processes (FSDP, DeepSpeed ZeRO-3).

    Errors: TypeError for anything but a bool or None, ValueError for True without a process group.
    """
    if synced_gpus is not None and not isinstance(synced_gpus, bool):
        raise TypeError(f"`synced_gpus` must be a bool, got {type(synced_gpus).__name__}")
    has_group = dist.is_available() and dist.is_initialized()
    if synced_gpus and not has_group:
        raise ValueError("`synced_gpus`=True needs a process group; call torch.distributed.init_process_group first")
    if synced_gpus is None:
        return has_group and dist.get_world_size() > 1 and _is_sharded(model)
    return synced_gpus


def _is_sharded(model: object) -> bool:
    from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel

    if not isinstance(model, torch.nn.Module):
        return False
    gathers = any(isinstance(module, (FSDPModule, FullyShardedDataParallel)) for module in model.modules())
    return gathers or any(hasattr(parameter, "ds_id") for parameter in model.parameters())


class Lockstep:
    """A context manager that keeps the forwards of `adapter` in step with those of other processes.

    Before a forward, each process reports that it continues. A process that has finished or failed runs an idle forward
    for each such report until all processes have finished.

        before each forward:  all_reduce(1)
        on leaving:           while all_reduce(0) > 0: idle forward
    """

    def __init__(self, adapter: ModelAdapter, device: torch.device) -> None:
        self._adapter = adapter
        self._device = device
        self._began = False

    def __enter__(self) -> None:
        self._adapter.before_forward = self._go_on

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None or self._began:
            while self._total(0).item() > 0:
                self._adapter.idle()

    def _go_on(self) -> None:
        self._began = True
        self._total(1)

    def _total(self, forwards: int) -> torch.Tensor:
        total = torch.tensor(forwards, device=self._device)
        dist.all_reduce(total)
        return total
