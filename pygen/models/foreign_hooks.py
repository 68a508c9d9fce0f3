"""Finds hooks on the modules of a model that another package has put there."""

from __future__ import annotations

import torch


def is_hooked(module: torch.nn.Module) -> bool:
    """Whether hooks run around the forward other than transformers' own, which only collect outputs."""
    hooks = (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    return hasattr(module, "_hf_hook") or any(not _origin(hook).startswith("transformers.") for hook in hooks)


def may_know_rows(model: torch.nn.Module) -> bool:
    """Whether a hook may depend on the rows of a forward, as peft's hooks that choose an adapter for each row do."""
    hooks = [hook for module in model.modules() for hook in module._forward_pre_hooks.values()]
    return any(not _origin(hook).startswith(("transformers.", "torch.distributed.")) for hook in hooks)


def _origin(hook: object) -> str:
    return str(getattr(getattr(hook, "func", hook), "__module__", ""))
