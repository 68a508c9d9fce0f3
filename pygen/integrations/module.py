"""Adapter for any `nn.Module` whose forward takes `input_ids` and returns logits."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pygen.integrations.inputs import GrowingInputs, last_logits, position_ids_from_mask, repeat_rows


class ModuleAdapter:
    """A plain module during one call; see `ModelAdapter`.

    forward: takes `input_ids` (rows, length) and, where its signature names them, `past_key_values` (None at first),
    `attention_mask` (rows, everything seen so far), `position_ids` (rows, length) and `use_cache`. It returns logits
    (rows, length, vocab_size) or (rows, vocab_size); or a tuple that begins with them; or an object or mapping with
    `logits`. The cache it returns, as the tuple's second item or as `past_key_values`, is passed back unread; without
    one every step forwards the whole sequence.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        parameters = inspect.signature(model.forward).parameters
        self._names = frozenset(
            name for name, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
        )
        self.generation_config = getattr(model, "generation_config", None)
        self.max_position_embeddings: int | None = getattr(
            getattr(model, "config", None), "max_position_embeddings", None
        )
        held = next(itertools.chain(model.parameters(), model.buffers()), None)
        self.device: torch.device | None = held.device if held is not None else torch.device("cpu")
        self.can_rewind = True
        self.attentions: list[Any] | None = None
        self.hidden_states: list[Any] | None = None
        self.cache: Any = None
        self._kwargs: dict[str, Any] = {}
        self._growing = GrowingInputs({}, 0)

    def accepts(self, name: str) -> bool:
        return name in self._names

    def check(self, model_kwargs: dict[str, Any], generation_config: Any) -> None:
        if not self.accepts("input_ids"):
            raise TypeError(f"`model`={type(self._model).__name__}: its forward must take `input_ids`")
        unused = [name for name, value in model_kwargs.items() if value is not None and not self.accepts(name)]
        if unused:
            raise ValueError(f"`model` does not use these arguments: {', '.join(f'`{name}`' for name in unused)}")

    def start(
        self, input_ids: Tensor, model_kwargs: dict[str, Any], config: Any, *, num_copies: int, max_new_tokens: int
    ) -> None:
        kwargs = dict(model_kwargs)
        self._batch_size, self._prompt_length = input_ids.shape
        self._num_copies = num_copies
        for name in ("output_attentions", "output_hidden_states"):
            if getattr(config, name):
                raise NotImplementedError(f"`{name}`=True: only models of transformers return them")
        if kwargs.pop("past_key_values", None) is not None:
            raise NotImplementedError("`past_key_values`: a plain module cannot be continued from a given cache")
        self._use_cache = self.accepts("past_key_values") and config.use_cache is not False
        if self.accepts("position_ids") and kwargs.get("position_ids") is None:
            mask = kwargs.get("attention_mask")
            kwargs["position_ids"] = position_ids_from_mask(torch.ones_like(input_ids) if mask is None else mask)
        if self.accepts("use_cache"):
            kwargs["use_cache"] = self._use_cache
        # Which dimension of an unknown cache is the batch cannot be told, so with a cache every copy is prefilled.
        self._expands_late = num_copies > 1 and not self._use_cache
        self.can_rewind = not (self._use_cache and config.return_dict_in_generate)
        if num_copies > 1 and not self._expands_late:
            kwargs = {name: repeat_rows(value, num_copies, self._batch_size) for name, value in kwargs.items()}
        self._growing = GrowingInputs(kwargs, max_new_tokens)
        self._kwargs = kwargs

    def prefill(self, prompt_ids: Tensor) -> Tensor:
        if not self._expands_late:
            return self._forward(prompt_ids, 0, prompt_ids.shape[1])
        copies, batch_size = self._num_copies, self._batch_size
        logits = self._forward(prompt_ids[::copies], 0, prompt_ids.shape[1])
        self._kwargs = {name: repeat_rows(value, copies, batch_size) for name, value in self._kwargs.items()}
        self._growing.expand(copies, batch_size)
        return logits.repeat_interleave(copies, dim=0)

    def decode(self, token_ids: Tensor) -> Tensor:
        length = token_ids.shape[1]
        unseen = 1 if self.cache is not None else length
        return self._forward(token_ids[:, -unseen:], length - self._prompt_length, unseen)

    def rewind(self) -> None:
        """Nothing to do: a cache that the caller gets to see is never decoded ahead (`can_rewind`)."""

    def _forward(self, input_ids: Tensor, generated: int, unseen: int) -> Tensor:
        inputs = self._kwargs | self._growing.after(generated)
        if "position_ids" in inputs:
            inputs["position_ids"] = inputs["position_ids"][..., -unseen:]
        if self._use_cache:
            inputs["past_key_values"] = self.cache
        logits, cache = _unpack(self._model(input_ids=input_ids, **inputs))
        if self._use_cache:
            self.cache = cache
        return last_logits(logits, input_ids.shape[0], input_ids.device)


def _unpack(outputs: Any) -> tuple[Any, Any]:
    """(logits, cache or None) of whatever a forward returned."""
    if isinstance(outputs, Tensor):
        return outputs, None
    if isinstance(outputs, tuple):
        return outputs[0], outputs[1] if len(outputs) > 1 else None
    if isinstance(outputs, Mapping) and "logits" in outputs:
        return outputs["logits"], outputs.get("past_key_values")
    if hasattr(outputs, "logits"):
        return outputs.logits, getattr(outputs, "past_key_values", None)
    raise TypeError(
        f"`model` must return a tensor, a tuple that begins with one, or an object with `logits`, "
        f"got {type(outputs).__name__}"
    )
