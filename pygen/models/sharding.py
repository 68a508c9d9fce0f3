"""Models whose weights FSDP spreads over processes, where something else than their forward is called."""

from __future__ import annotations

import contextlib
import types
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch.distributed as dist
from torch import nn

Result = TypeVar("Result")

_METHOD = "_pygen_with_root_weights"


def with_root_weights(model: Any, function: Callable[[], Result]) -> Result:
    """`function()`, which calls parts of `model`, while the weights are whole that only the forward of all gathers.

    Without FSDP it is just called. All processes have to call it.
    """
    if not dist.is_available():
        return function()
    from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel, register_fsdp_forward_method

    if isinstance(model, FullyShardedDataParallel):
        with FullyShardedDataParallel.summon_full_params(model, recurse=False, writeback=False):
            return function()
    if not isinstance(model, FSDPModule):
        return function()
    setattr(model, _METHOD, types.MethodType(lambda self: function(), model))
    try:
        register_fsdp_forward_method(cast(nn.Module, model), _METHOD)
        result: Result = getattr(model, _METHOD)()
        return result
    finally:
        with contextlib.suppress(AttributeError):
            delattr(model, _METHOD)
