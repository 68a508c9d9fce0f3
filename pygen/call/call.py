"""One call of `generate`, resolved: what every loop is started from."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from pygen.config.config import GenerationConfig, GenerationMode
from pygen.models.adapter import ModelAdapter
from pygen.request.prompt import Prompt
from pygen.request.settings import Lengths, Settings, SpecialTokens
from pygen.stopping.criteria import Stopping


@dataclass(frozen=True)
class Call:
    """Settings, inputs and lengths of a call, all checked; nothing has run yet, and `adapter.start` is the first to.

    num_copies: rows per prompt, the copies side by side.
    model, logits_processor, prefix_allowed_tokens_fn, negative_prompt_ids, negative_prompt_attention_mask, streamer,
    generator, cancel, progress, tokenizer, assistant_model, assistant_tokenizer, runtime: as they were passed to
    `generate`.
    """

    adapter: ModelAdapter
    settings: Settings
    mode: GenerationMode
    tokens: SpecialTokens
    prompt: Prompt
    lengths: Lengths
    num_copies: int
    model: Any
    logits_processor: Any
    prefix_allowed_tokens_fn: Any
    negative_prompt_ids: Any
    negative_prompt_attention_mask: Any
    stopping: Stopping
    streamer: Any
    tokenizer: Any
    generator: torch.Generator | None
    cancel: threading.Event | None
    progress: bool
    assistant_model: Any = None
    assistant_tokenizer: Any = None
    synced_gpus: bool = False
    runtime: str = "auto"

    @property
    def config(self) -> GenerationConfig:
        return self.settings.config

    @property
    def batch_size(self) -> int:
        return self.prompt.input_ids.shape[0]

    @property
    def rows(self) -> int:
        return self.batch_size * self.num_copies

    @property
    def wants_dict(self) -> bool:
        return bool(self.config.return_dict_in_generate)

    @property
    def criteria(self) -> tuple[Callable[..., Any], ...]:
        """What is asked after every step."""
        return self.stopping.criteria

    @property
    def pads(self) -> bool:
        """Whether rows may finish before others, and emit the pad token then: transformers' rule."""
        return self.stopping.pads

    def start(self, **arguments: Any) -> None:
        """Makes the model ready: cache, buffers, and the encoder's forward. arguments: more ones of the adapter's, or
        others in the place of the call's."""
        sizes = {"num_copies": self.num_copies, "max_new_tokens": self.lengths.max_new_tokens}
        self.adapter.start(self.prompt, mode=self.mode, **{**sizes, **arguments})
