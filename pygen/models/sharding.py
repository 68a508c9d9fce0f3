"""Gathers the root weights of an FSDP model for calls other than its forward."""

from __future__ import annotations

import contextlib
import types
from collections.abc import Callable
from typing import TypeVar, cast

import torch.distributed as dist
from torch import nn

Result = TypeVar("Result")

_METHOD = "_pygen_with_root_weights"


def with_root_weights(model: nn.Module, function: Callable[[], Result]) -> Result:
    """Calls `function`, which runs parts of `model`, with the weights that otherwise only the whole forward gathers.

    Without FSDP it only calls `function`. All processes must call it together.
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
