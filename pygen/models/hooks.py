"""The default hooks of a model class with pygen's `GenerationMixin`."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor

from pygen.config.config import GenerationConfig
from pygen.models.inputs import GrowingInputs, repeat_rows
from pygen.models.module import unpack_outputs
from pygen.models.versions import cache_parameter, without_cache


@functools.lru_cache(maxsize=1024)
def parameter_names(function: Callable[..., object]) -> frozenset[str]:
    """The names that `function` takes by keyword, without `**kwargs`."""
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return frozenset(name for name, p in inspect.signature(function).parameters.items() if p.kind in kinds)


class GenerationHooks:
    """The hooks that `generate` calls on a model class, under transformers' names. `GenerationMixin` lists them."""

    @functools.cached_property
    def generation_config(self) -> GenerationConfig:
        config = getattr(self, "config", None)
        return GenerationConfig.from_model_config(config) if hasattr(config, "to_dict") else GenerationConfig()

    def can_generate(self) -> bool:
        return True

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        next_sequence_length: int | None = None,
        past_key_values: object = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        is_first_iteration: bool | None = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """The arguments of the next `forward`: all given ones that it has a parameter for.

        input_ids: (rows, length), the whole text.
        next_sequence_length: `forward` gets so many of the last columns, those new to the cache; None means all.
        attention_mask: (rows, length).
        kwargs: `position_ids` (rows, length), which this cuts like the ids, and other inputs.
        """
        if next_sequence_length is not None:
            input_ids = input_ids[:, -next_sequence_length:]
            if kwargs.get("position_ids") is not None:
                kwargs["position_ids"] = kwargs["position_ids"][..., -next_sequence_length:]
        given = {
            "input_ids": input_ids,
            "past_key_values": past_key_values,
            "attention_mask": attention_mask,
            "inputs_embeds": inputs_embeds,
            **kwargs,
        }
        names = parameter_names(type(self).forward)  # type: ignore[attr-defined]
        return {name: value for name, value in given.items() if value is not None and name in names}

    def _update_model_kwargs_for_generation(
        self, outputs: object, model_kwargs: dict[str, Any], is_encoder_decoder: bool = False, num_new_tokens: int = 1
    ) -> dict[str, Any]:
        """The inputs of the next step: mask and positions with `num_new_tokens` more columns, and the new cache."""
        kwargs = dict(model_kwargs)
        grown = GrowingInputs(kwargs, num_new_tokens, is_encoder_decoder).after(num_new_tokens)
        _, cache = unpack_outputs(outputs)
        name = cache_parameter(parameter_names(type(self).forward)) or "past_key_values"  # type: ignore[attr-defined]
        return {**without_cache(kwargs), **grown, **({} if cache is None else {name: cache})}

    @staticmethod
    def _expand_inputs_for_generation(
        expand_size: int = 1, is_encoder_decoder: bool = False, input_ids: Tensor | None = None, **model_kwargs: object
    ) -> tuple[Tensor | None, dict[str, Any]]:
        """Repeats rows of the ids and of tensors in `model_kwargs` `expand_size` times; the copies are adjacent."""
        first = (
            input_ids
            if input_ids is not None
            else next((value for value in model_kwargs.values() if isinstance(value, Tensor) and value.ndim), None)
        )
        if first is None:
            return input_ids, model_kwargs
        expanded = {name: repeat_rows(value, expand_size, first.shape[0]) for name, value in model_kwargs.items()}
        return repeat_rows(input_ids, expand_size, first.shape[0]), expanded
