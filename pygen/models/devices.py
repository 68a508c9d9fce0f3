"""Where a model computes, and whether it moves its inputs there itself."""

from __future__ import annotations

import itertools
from typing import Any

import torch


def execution_device(model: Any) -> torch.device:
    """Where `model` computes: what the hooks of accelerate say, whose weights may be elsewhere, or where its first
    weight is."""
    hooked = _hooked_device(model)
    if hooked is not None:
        return hooked
    held = next(itertools.chain(model.parameters(), model.buffers()), None)
    return torch.device("cpu") if held is None else held.device


def input_device(model: Any) -> torch.device | None:
    """Where `model` needs its inputs; None where it moves them itself."""
    if getattr(model, "hf_device_map", None) or _hooked_device(model) is not None:
        return None
    return execution_device(model)


def _hooked_device(model: Any) -> torch.device | None:
    if "_hf_hook" not in vars(model):
        return None
    for module in model.modules():
        hook = vars(module).get("_hf_hook")
        for single in getattr(hook, "hooks", (hook,)):
            device = getattr(single, "execution_device", None)
            if device is not None:
                return torch.device(device)
    return None
