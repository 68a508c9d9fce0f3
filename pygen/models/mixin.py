"""Adapter for classes with pygen's `GenerationMixin`, which runs them through their hooks."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pygen.config.config import GenerationConfig, GenerationMode
from pygen.models.cache import CROPPING_MODES
from pygen.models.hooks import GenerationHooks, parameter_names
from pygen.models.inputs import GrowingInputs, tail_logits
from pygen.models.module import ModuleAdapter, unpack_outputs
from pygen.models.own_updates import OwnUpdates
from pygen.models.rollback import reads_at_once
from pygen.models.versions import cache_parameter, given_cache, without_cache
from pygen.models.wrappers import inner
from pygen.request.prompt import Prompt
from pygen.request.settings import SpecialTokens

# Methods that models of transformers may override, and that pygen never calls.
_NEVER_CALLED = (
    "_assisted_decoding",
    "_beam_search",
    "_get_logits_processor",
    "_get_stopping_criteria",
    "_prefill",
    "_prepare_encoder_decoder_kwargs_for_generation",
    "_prepare_generation_config",
    "_sample",
)


class MixinAdapter(ModuleAdapter):
    """A model with pygen's `GenerationMixin` during one call; see `ModelAdapter`."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self._hooks: GenerationHooks = inner(model)
        self._returns_dict = "return_dict" in self._names
        if self._replaces("prepare_inputs_for_generation"):
            self._names |= parameter_names(type(self._hooks).prepare_inputs_for_generation)
            self._cache_name = cache_parameter(self._names)
        # The default adds columns to masks and positions. The adapter slices buffers instead.
        self._grows_by_default = not self._replaces("_update_model_kwargs_for_generation")
        self._updates: OwnUpdates | None = None

    def check(self, model_kwargs: Mapping[str, object], generation_config: object) -> None:
        name = type(self._hooks).__name__
        mixins = [base for base in type(self._hooks).__mro__ if base.__name__ == "GenerationMixin"]
        if not all(issubclass(mixin, GenerationHooks) for mixin in mixins):
            raise TypeError(f"`model`={name} must not have two mixins; for a model of transformers use pygen.patch()")
        for method in _NEVER_CALLED:
            if hasattr(self._hooks, method):
                raise NotImplementedError(
                    f"`model`={name}: its own `{method}` would not be called; pygen.GenerationMixin lists the hooks"
                )
        super().check(model_kwargs, generation_config)

    def prompt(
        self, inputs: object, model_kwargs: dict[str, Any], config: GenerationConfig, tokens: SpecialTokens
    ) -> Prompt:
        self._config = config
        return super().prompt(inputs, model_kwargs, config, tokens)

    def start(
        self, prompt: Prompt, *, mode: GenerationMode, num_copies: int, max_new_tokens: int, **more: bool
    ) -> None:
        super().start(prompt, mode=mode, num_copies=num_copies, max_new_tokens=max_new_tokens, **more)
        self._mode, self._max_new_tokens = mode, max_new_tokens
        if not self._grows_by_default:
            self._kwargs |= self._growing.after(0)
            self._growing = GrowingInputs({}, 0)
            hook = self._hooks._update_model_kwargs_for_generation
            update = functools.partial(hook, is_encoder_decoder=False, num_new_tokens=1)
            self._updates = OwnUpdates(update, keep=mode in CROPPING_MODES, rereads=not self._use_cache)
        prepare_cache = getattr(self._hooks, "_prepare_cache_for_generation", None)
        if self._use_cache and prepare_cache is not None:
            longest = self._prompt_length + max_new_tokens - 1
            kwargs = dict(self._kwargs)
            prepare_cache(self._config, kwargs, mode, self._batch_size, longest)
            self.cache = given_cache(kwargs)
            self._kwargs = without_cache(kwargs)

    def prefill(self, prompt_ids: Tensor) -> Tensor:
        logits = super().prefill(prompt_ids)
        if self._updates is not None:
            self._updates.begin(self._kwargs)
            if self._updates.writes_in_place:
                self.can_crop = False
            elif self._mode is GenerationMode.ASSISTED_GENERATION:
                capacity = self._max_new_tokens - 1
                self.reads_at_once = not self._updates.reads_outputs and reads_at_once(
                    self._hooks, None, self._reread, prompt_ids, logits, capacity
                )
        return logits

    def decode_tail(self, token_ids: Tensor, count: int) -> Tensor:
        if self.reads_at_once or count == 1:
            return super().decode_tail(token_ids, count)
        ends = range(token_ids.shape[1] - count + 1, token_ids.shape[1] + 1)
        return torch.cat([super(MixinAdapter, self).decode_tail(token_ids[:, :end], 1) for end in ends], dim=1)

    def rows_stay(self, rows: int) -> str | None:
        if not self._grows_by_default or self._replaces("_expand_inputs_for_generation"):
            return f"{type(self._hooks).__name__} prepares the inputs of its rows by its own methods"
        return super().rows_stay(rows)

    def hold(self) -> None:
        if self._updates is not None:
            self._updates.hold()

    def idle(self) -> None:
        ids = torch.zeros((1, 1), dtype=torch.int64, device=self._device)
        self._model(
            **self._hooks.prepare_inputs_for_generation(ids, attention_mask=torch.ones_like(ids), position_ids=ids)
        )

    def _replaces(self, method: str) -> bool:
        return getattr(type(self._hooks), method) is not getattr(GenerationHooks, method)

    def _expanded(self, kwargs: dict[str, Any]) -> dict[str, object]:
        _, expanded = self._hooks._expand_inputs_for_generation(
            expand_size=self._num_copies, is_encoder_decoder=False, **kwargs
        )
        return expanded

    def _forward(self, token_ids: Tensor, unseen: int, count: int = 1) -> Tensor:
        generated = token_ids.shape[1] - self._prompt_length
        if self._updates is not None and generated > 0:
            kwargs = dict(self._updates.arguments(generated - count, count))
        else:
            kwargs = self._kwargs | self._growing.after(generated)
        if self.cache is not None:
            kwargs[self._cache_name or "past_key_values"] = self.cache
        inputs = self._hooks.prepare_inputs_for_generation(
            token_ids,
            next_sequence_length=unseen if unseen < token_ids.shape[1] else None,
            is_first_iteration=generated == 0,
            **kwargs,
        )
        if self._returns_dict:
            inputs["return_dict"] = True
        self.before_forward()
        outputs = self._model(**inputs)
        if self._hidden is not None:
            self._hidden.keep(outputs)
        logits, cache = unpack_outputs(outputs)
        if self._updates is not None:
            kwargs = self._updates.add(outputs) if generated > 0 else self._updates.start(outputs, kwargs)
            cache, self._kwargs = given_cache(kwargs), without_cache(kwargs)
        if self._use_cache:
            self.cache = cache
        return tail_logits(logits, token_ids.shape[0], count, token_ids.device)

    def _reread(self, token_ids: Tensor, unread: int, wanted: int) -> Tensor:
        return self._forward(token_ids, token_ids.shape[1], unread)[:, unread - wanted :]
