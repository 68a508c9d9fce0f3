"""Adapter for decoder-only models of transformers, driven through their own hooks."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationMixin
from transformers.generation.configuration_utils import GenerationMode

from pygen import cache as cache_verbs
from pygen.integrations.inputs import GrowingInputs, last_logits, position_ids_from_mask, repeat_rows

# Where a model's output may carry its cache, and the argument that takes it back.
_CACHE_NAMES = {
    "past_key_values": "past_key_values",
    "cache_params": "cache_params",
    "state": "state",
    "mems": "past_key_values",
    "past_buckets_states": "past_key_values",
}
# A model class that replaces one of these decodes in a way the loops here would silently drop.
_REQUIRED_DEFAULTS = (
    "generate",
    "_sample",
    "_prefill",
    "_get_logits_processor",
    "_get_stopping_criteria",
    "_prepare_model_inputs",
    "_prepare_generated_length",
    "_prepare_attention_mask_for_generation",
)


class TransformersAdapter:
    """A transformers decoder-only model during one call; see `ModelAdapter`."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._hooks = getattr(model, "_orig_mod", model)
        self._forward_names = frozenset(inspect.signature(self._hooks.forward).parameters)
        self._grows_by_default = self._is_default("_update_model_kwargs_for_generation")
        self.generation_config = getattr(self._hooks, "generation_config", None)
        # Weights spread over devices move their inputs themselves.
        spread = getattr(self._hooks, "hf_device_map", None)
        self.device: torch.device | None = None if spread else self._hooks.device
        self.max_position_embeddings: int | None = getattr(self._hooks.config, "max_position_embeddings", None)
        self.can_rewind = True
        self.attentions: list[Any] | None = None
        self.hidden_states: list[Any] | None = None
        self._kwargs: dict[str, Any] = {}
        self._growing: GrowingInputs | None = None

    def accepts(self, name: str) -> bool:
        return name in self._forward_names

    def check(self, model_kwargs: dict[str, Any], generation_config: Any) -> None:
        name = type(self._hooks).__name__
        if self._hooks.config.is_encoder_decoder:
            raise NotImplementedError(f"`model`={name}: encoder-decoder models are not available in this version")
        if self._hooks.main_input_name != "input_ids":
            raise NotImplementedError(
                f"`model`={name}: models over `{self._hooks.main_input_name}` are not available in this version"
            )
        for hook in _REQUIRED_DEFAULTS:
            if not self._is_default(hook):
                raise NotImplementedError(
                    f"`model`={name}: its own `{hook}` replaces transformers', which is not available in this version"
                )
        legacy: dict[str, Any] = getattr(self._hooks.config, "_get_generation_parameters", dict)()
        if generation_config is None and legacy:
            raise ValueError(
                f"`model.config` must not hold settings of generation, got {legacy}; "
                f"set them in `model.generation_config`"
            )
        self._hooks._validate_model_kwargs(dict(model_kwargs))
        if isinstance(model_kwargs.get("past_key_values"), tuple):
            raise TypeError("`past_key_values` must be a cache object, got tuple")

    def start(
        self, input_ids: Tensor, model_kwargs: dict[str, Any], config: Any, *, num_copies: int, max_new_tokens: int
    ) -> None:
        kwargs = dict(model_kwargs)
        self._batch_size, prompt_length = input_ids.shape
        self._prompt_length = prompt_length
        self._num_copies = num_copies
        self._max_new_tokens = max_new_tokens
        if kwargs.get("position_ids") is None and self.accepts("position_ids"):
            kwargs["position_ids"] = self._position_ids(input_ids, kwargs)
        if "logits_to_keep" not in kwargs and self.accepts("logits_to_keep"):
            kwargs["logits_to_keep"] = 1
        callers_cache = any(kwargs.get(name) is not None for name in _CACHE_NAMES)
        self._hooks._prepare_cache_for_generation(
            config,
            kwargs,
            GenerationMode.SAMPLE if config.do_sample else GenerationMode.GREEDY_SEARCH,
            self._batch_size,
            prompt_length + max_new_tokens - 1,
        )
        self._use_cache = config.use_cache is not False
        kwargs["use_cache"] = self._use_cache
        for flag, kept in (("output_attentions", "attentions"), ("output_hidden_states", "hidden_states")):
            if getattr(config, flag):
                kwargs[flag] = True
                setattr(self, kept, [])
        self._kwargs = kwargs
        cache = self.cache
        # The caller's cache already has a row per output row, or none yet: transformers' rule.
        self._expands_late = (
            num_copies > 1
            and not callers_cache
            and self._is_default("_expand_inputs_for_generation")
            and (cache_verbs.can_expand(cache) if self._use_cache else True)
        )
        self._cache_is_visible = callers_cache or bool(config.return_dict_in_generate)
        self.can_rewind = not self._cache_is_visible or not self._use_cache or cache_verbs.can_crop(cache)

    def prefill(self, prompt_ids: Tensor) -> Tensor:
        if self._expands_late:
            prompt_ids = prompt_ids[:: self._num_copies]
        elif self._num_copies > 1:
            _, self._kwargs = self._hooks._expand_inputs_for_generation(
                expand_size=self._num_copies,
                is_encoder_decoder=False,
                input_ids=prompt_ids[:: self._num_copies],
                **self._kwargs,
            )
        inputs = self._hooks.prepare_inputs_for_generation(
            prompt_ids,
            next_sequence_length=self._unseen_length(prompt_ids),
            is_first_iteration=True,
            **self._kwargs,
        )
        outputs = self._model(**inputs, return_dict=True)
        logits = last_logits(outputs.logits, prompt_ids.shape[0], prompt_ids.device)
        self._keep(outputs)
        if self._expands_late:
            logits = self._expand(logits)
        if self._grows_by_default:
            self._growing = GrowingInputs(self._kwargs, self._max_new_tokens)
        return logits

    def decode(self, token_ids: Tensor) -> Tensor:
        kwargs = self._kwargs
        if self._growing is not None:
            kwargs = kwargs | self._growing.after(token_ids.shape[1] - self._prompt_length)
        inputs = self._hooks.prepare_inputs_for_generation(
            token_ids, next_sequence_length=1 if self._use_cache else None, **kwargs
        )
        with self._hooks._optimize_model_for_decode():
            outputs = self._model(**inputs, return_dict=True)
        self._keep(outputs)
        return last_logits(outputs.logits, token_ids.shape[0], token_ids.device)

    def rewind(self) -> None:
        for kept in (self.attentions, self.hidden_states):
            if kept is not None:
                kept.pop()
        if self._cache_is_visible and self.cache is not None:
            cache_verbs.crop(self.cache, 1)

    @property
    def cache(self) -> Any:
        return next((self._kwargs[name] for name in _CACHE_NAMES if self._kwargs.get(name) is not None), None)

    def _is_default(self, hook: str) -> bool:
        default = getattr(GenerationMixin, hook, None)
        return default is None or inspect.getattr_static(type(self._hooks), hook, default) is inspect.getattr_static(
            GenerationMixin, hook
        )

    def _position_ids(self, input_ids: Tensor, kwargs: dict[str, Any]) -> Tensor:
        hook = getattr(self._hooks, "_prepare_position_ids_for_generation", None)
        if hook is not None:
            position_ids: Tensor = hook(input_ids, kwargs)
            return position_ids
        return position_ids_from_mask(kwargs.get("attention_mask", torch.ones_like(input_ids)))

    def _unseen_length(self, prompt_ids: Tensor) -> int | None:
        """How many of the prompt's last tokens a cache has not seen; None where all were passed on purpose."""
        cache = self._kwargs.get("past_key_values")
        mask = self._kwargs.get("attention_mask")
        if cache is None or mask is None or mask.shape[1] != prompt_ids.shape[1]:
            return None
        return prompt_ids.shape[1] - int(cache.get_seq_length())

    def _keep(self, outputs: Any) -> None:
        if self._grows_by_default:
            for name, argument in _CACHE_NAMES.items():
                if name in outputs:
                    self._kwargs[argument] = outputs[name]
                    break
        else:
            self._kwargs = self._hooks._update_model_kwargs_for_generation(
                outputs, self._kwargs, is_encoder_decoder=False
            )
        if self.attentions is not None:
            self.attentions.append(outputs.attentions)
        if self.hidden_states is not None:
            self.hidden_states.append(outputs.hidden_states)

    def _expand(self, logits: Tensor) -> Tensor:
        copies, batch_size = self._num_copies, self._batch_size
        if self.cache is not None:
            cache_verbs.expand(self.cache, copies)
        for kept in (self.attentions, self.hidden_states):
            if kept is not None:
                kept[-1] = repeat_rows(kept[-1], copies, batch_size)
        self._kwargs = {name: repeat_rows(value, copies, batch_size) for name, value in self._kwargs.items()}
        return logits.repeat_interleave(copies, dim=0)
