"""The arguments of one `generate`, bound once for all that look at them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor

# Parameters that `generate` has beyond those of transformers, with their defaults.
_BEYOND = {"generator": None, "cancel": None, "progress": False, "runtime": "auto"}


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """What `pygen.generate` was called with; its docstring says what each argument means.

    kwargs: settings, inputs of the model, and tokenizers.
    """

    model: Any
    inputs: Tensor | None = None
    generation_config: Any = None
    logits_processor: Sequence[Callable[[Tensor, Tensor], Tensor]] | None = None
    stopping_criteria: Sequence[Callable[..., Any]] | None = None
    prefix_allowed_tokens_fn: Callable[[int, Tensor], Sequence[int]] | None = None
    synced_gpus: bool | None = None
    assistant_model: Any = None
    streamer: Any = None
    negative_prompt_ids: Tensor | None = None
    negative_prompt_attention_mask: Tensor | None = None
    custom_generate: Any = None
    generator: torch.Generator | None = None
    cancel: threading.Event | None = None
    progress: bool = False
    runtime: str = "auto"
    kwargs: dict[str, Any] = field(default_factory=dict)

    def for_custom_code(self, streamer: Any) -> dict[str, Any]:
        """Keyword arguments of a `generate` that others wrote: transformers' all, pygen's own where they are given.

        streamer: takes the place of the caller's.
        """
        own = {*_BEYOND, "custom_generate", "kwargs"}
        passed = {field.name: getattr(self, field.name) for field in fields(self) if field.name not in own}
        beyond = {name: getattr(self, name) for name, default in _BEYOND.items() if getattr(self, name) != default}
        return {**passed, **beyond, "streamer": streamer, **self.kwargs}
