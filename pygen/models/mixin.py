"""Adapter for classes with pygen's `GenerationMixin`, driven through the hooks that they replace."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pygen.config.config import GenerationConfig, GenerationMode
from pygen.models.hooks import GenerationHooks, parameter_names
from pygen.models.inputs import GrowingInputs, tail_logits
from pygen.models.module import ModuleAdapter, unpack_outputs
from pygen.models.versions import cache_parameter, given_cache, without_cache
from pygen.models.wrappers import inner
from pygen.request.prompt import Prompt
from pygen.request.settings import SpecialTokens

# Methods that models of transformers replace and whose work is done elsewhere here.
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

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self._hooks: Any = inner(model)
        self._returns_dict = "return_dict" in self._names
        if self._replaces("prepare_inputs_for_generation"):
            self._names |= parameter_names(type(self._hooks).prepare_inputs_for_generation)
            self._cache_name = cache_parameter(self._names)
        # The default adds columns to masks and positions: these are written once instead, and only sliced.
        self._grows_by_default = not self._replaces("_update_model_kwargs_for_generation")

    def check(self, model_kwargs: dict[str, Any], generation_config: Any) -> None:
        name = type(self._hooks).__name__
        mixins = [base for base in type(self._hooks).__mro__ if base.__name__ == "GenerationMixin"]
        if not all(issubclass(mixin, GenerationHooks) for mixin in mixins):
            raise TypeError(
                f"`model`={name} must not have two mixins; for a model of transformers there is pygen.patch()"
            )
        for method in _NEVER_CALLED:
            if hasattr(self._hooks, method):
                raise NotImplementedError(
                    f"`model`={name}: its own `{method}` would not be called; pygen.GenerationMixin lists what is"
                )
        super().check(model_kwargs, generation_config)

    def prompt(
        self, inputs: Any, model_kwargs: dict[str, Any], config: GenerationConfig, tokens: SpecialTokens
    ) -> Prompt:
        self._config = config
        return super().prompt(inputs, model_kwargs, config, tokens)

    def start(
        self, prompt: Prompt, *, mode: GenerationMode, num_copies: int, max_new_tokens: int, **more: bool
    ) -> None:
        super().start(prompt, mode=mode, num_copies=num_copies, max_new_tokens=max_new_tokens, **more)
        if not self._grows_by_default:
            self._kwargs |= self._growing.after(0)
            self._growing = GrowingInputs({}, 0)
            self.can_crop, self.can_rewind = False, not self.shows_cache
        if self._use_cache and hasattr(self._hooks, "_prepare_cache_for_generation"):
            longest = self._prompt_length + max_new_tokens - 1
            kwargs = dict(self._kwargs)
            self._hooks._prepare_cache_for_generation(self._config, kwargs, mode, self._batch_size, longest)
            self.cache = given_cache(kwargs)
            self._kwargs = without_cache(kwargs)

    def idle(self) -> None:
        ids = torch.zeros((1, 1), dtype=torch.int64, device=self._device)
        self._model(
            **self._hooks.prepare_inputs_for_generation(ids, attention_mask=torch.ones_like(ids), position_ids=ids)
        )

    def _replaces(self, method: str) -> bool:
        return getattr(type(self._hooks), method) is not getattr(GenerationHooks, method)

    def _expanded(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        _, expanded = self._hooks._expand_inputs_for_generation(
            expand_size=self._num_copies, is_encoder_decoder=False, **kwargs
        )
        result: dict[str, Any] = expanded
        return result

    def _forward(self, token_ids: Tensor, unseen: int, count: int = 1) -> Tensor:
        generated = token_ids.shape[1] - self._prompt_length
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
        if not self._grows_by_default:
            kwargs = self._hooks._update_model_kwargs_for_generation(
                outputs, kwargs, is_encoder_decoder=False, num_new_tokens=count
            )
            cache, self._kwargs = given_cache(kwargs), without_cache(kwargs)
        if self._use_cache:
            self.cache = cache
        return tail_logits(logits, token_ids.shape[0], count, token_ids.device)
