"""Hooks on the modules of a model that its own package did not put there."""

from __future__ import annotations

from typing import Any

import torch


def is_hooked(module: torch.nn.Module) -> bool:
    """Whether anything else than transformers' hooks, which only collect what is returned, runs around the forward."""
    hooks = (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    return hasattr(module, "_hf_hook") or any(not _origin(hook).startswith("transformers.") for hook in hooks)


def may_know_rows(model: torch.nn.Module) -> bool:
    """Whether a hook may depend on the rows of a forward, as those of peft do that choose an adapter for each row."""
    hooks = [hook for module in model.modules() for hook in module._forward_pre_hooks.values()]
    return any(not _origin(hook).startswith(("transformers.", "torch.distributed.")) for hook in hooks)


def _origin(hook: Any) -> str:
    return str(getattr(getattr(hook, "func", hook), "__module__", ""))
