"""The arguments of one call of `generate`, bound once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor, nn

from pygen.request.protocols import Streamer
from pygen.stopping.criteria import Criterion

# The parameters of `pygen.generate` that transformers does not have, with their defaults.
BEYOND = {"generator": None, "cancel": None, "progress": False, "runtime": "auto", "compact_rows": "auto"}


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """The arguments of `pygen.generate`, whose docstring describes each.

    kwargs: settings, inputs of the model, and tokenizers.
    """

    model: nn.Module
    inputs: Tensor | None = None
    generation_config: object = None
    logits_processor: Sequence[Callable[[Tensor, Tensor], Tensor]] | None = None
    stopping_criteria: Sequence[Criterion] | None = None
    prefix_allowed_tokens_fn: Callable[[int, Tensor], Sequence[int]] | None = None
    synced_gpus: bool | None = None
    assistant_model: nn.Module | None = None
    streamer: Streamer | None = None
    negative_prompt_ids: Tensor | None = None
    negative_prompt_attention_mask: Tensor | None = None
    custom_generate: str | Callable[..., object] | None = None
    generator: torch.Generator | None = None
    cancel: threading.Event | None = None
    progress: bool = False
    runtime: str = "auto"
    compact_rows: bool | str = "auto"
    kwargs: dict[str, Any] = field(default_factory=dict)

    def for_custom_code(self, streamer: Streamer | None) -> dict[str, object]:
        """Keyword arguments for someone else's `generate`: all of transformers', and pygen's own unless neutral.

        streamer: replaces the caller's.
        """
        own = {*BEYOND, "custom_generate", "kwargs"}
        passed = {field.name: getattr(self, field.name) for field in fields(self) if field.name not in own}
        beyond = {name: getattr(self, name) for name, default in BEYOND.items() if getattr(self, name) != default}
        return {**passed, **beyond, "streamer": streamer, **self.kwargs}
