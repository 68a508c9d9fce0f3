"""The device on which a model computes, and whether the model moves its inputs there."""

from __future__ import annotations

import itertools

import torch
from torch import nn


def execution_device(model: nn.Module) -> torch.device:
    """The device on which `model` computes: that of accelerate's hooks, which may keep weights elsewhere, or else that
    of its first weight."""
    hooked = _hooked_device(model)
    if hooked is not None:
        return hooked
    first = next(itertools.chain(model.parameters(), model.buffers()), None)
    return torch.device("cpu") if first is None else first.device


def input_device(model: nn.Module) -> torch.device | None:
    """The device on which `model` needs its inputs; None where it moves them itself."""
    if getattr(model, "hf_device_map", None) or _hooked_device(model) is not None:
        return None
    return execution_device(model)


def _hooked_device(model: nn.Module) -> torch.device | None:
    if "_hf_hook" not in vars(model):
        return None
    for module in model.modules():
        hook = vars(module).get("_hf_hook")
        for single in getattr(hook, "hooks", (hook,)):
            device = getattr(single, "execution_device", None)
            if device is not None:
                return torch.device(device)
    return None
