"""Adapters: what a loop needs of a model, whatever family it comes from."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn


class ModelAdapter(Protocol):
    """One model during one call.

    `generate` uses the first part to set up; a loop uses only the second. An adapter keeps its state to itself: nothing
    is stored on the model, and the caller's arguments are not written to, but the caller's cache is extended.
    """

    generation_config: Any
    device: torch.device | None  # where the prompts have to be; None where the model takes them from anywhere
    max_position_embeddings: int | None

    def accepts(self, name: str) -> bool:
        """Whether the model's forward has a parameter `name`."""
        ...

    def check(self, model_kwargs: dict[str, Any], generation_config: Any) -> None:
        """ValueError naming the arguments that the model does not use, NotImplementedError for models out of reach.

        generation_config: what the caller passed, or None.
        """
        ...

    def start(
        self, input_ids: Tensor, model_kwargs: dict[str, Any], config: Any, *, num_copies: int, max_new_tokens: int
    ) -> None:
        """Prepares positions, cache and buffers for prompts (batch_size, prompt_length), `num_copies` rows each."""
        ...

    def prefill(self, prompt_ids: Tensor) -> Tensor:
        """(rows, prompt_length) -> logits (rows, vocab_size) after the prompts, rows = batch_size * num_copies.

        The copies of a prompt stand side by side. They share one forward where the cache can be expanded after it.
        """
        ...

    def decode(self, token_ids: Tensor) -> Tensor:
        """(rows, length), a column more than the model has seen -> logits (rows, vocab_size) after the last one."""
        ...

    can_rewind: bool

    def rewind(self) -> None:
        """Takes the last `decode` back, as far as the caller could see it."""
        ...

    @property
    def cache(self) -> Any:
        """The cache as it is now, or None."""
        ...

    attentions: list[Any] | None
    hidden_states: list[Any] | None


def adapt(model: Any) -> ModelAdapter:
    """The adapter for `model`: transformers' generation models, else any module over `input_ids`."""
    target = getattr(model, "_orig_mod", model)
    for base in type(target).__mro__:
        if base.__name__ == "GenerationMixin" and base.__module__.startswith("transformers."):
            from pygen.integrations.transformers import TransformersAdapter

            return TransformersAdapter(model)
    if isinstance(model, nn.Module):
        from pygen.integrations.module import ModuleAdapter

        return ModuleAdapter(model)
    raise TypeError(f"`model` must be a torch.nn.Module, got {type(model).__name__}")
