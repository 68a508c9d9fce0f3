"""Adapter for the generation models of transformers, which runs them through their own hooks."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pygen.config.config import GenerationConfig, GenerationMode
from pygen.config.rules import STATIC_CACHES
from pygen.models import cache as cache_verbs
from pygen.models.cache_snapshot import can_copy
from pygen.models.encoding import StaticCache, fit_encoding
from pygen.models.foreign_hooks import may_know_rows
from pygen.models.growing_layer import cut_to_size, grow_in_place
from pygen.models.hidden_states import HiddenStates
from pygen.models.inputs import GrowingInputs, tail_logits
from pygen.models.own_generate import own_generate_runs
from pygen.models.own_updates import OwnUpdates
from pygen.models.positions import check_encoder_positions, fit_positions
from pygen.models.protocols import ForwardOutput
from pygen.models.rollback import Rollback, reads_at_once
from pygen.models.rows import ModuleStates, is_by_rows, map_leaves, row_dims
from pygen.models.sharding import with_root_weights
from pygen.models.transformers_forwards import RECORDS, TransformersForwards
from pygen.models.transformers_inputs import (
    add_cache,
    check_capacity,
    encode,
    is_default,
    read_prompt,
    refuse_by_preparer,
    unseen_length,
)
from pygen.models.versions import (
    given_cache,
    given_cache_name,
    rename_cache,
    sorts_drawn_beams,
    warn_unless_tested,
)
from pygen.request.prompt import Prompt
from pygen.request.settings import SpecialTokens

# A model class that overrides one of these decodes in a way that pygen's loops would silently ignore.
_REQUIRED_DEFAULTS = (
    "generate",
    "_sample",
    "_beam_search",
    "_assisted_decoding",
    "_prefill",
    "_get_logits_processor",
    "_get_stopping_criteria",
    "_prepare_generation_config",
    "_prepare_generated_length",
    "_has_unfinished_sequences",
)


class TransformersAdapter(TransformersForwards):
    """A transformers model during one call; see `ModelAdapter`.

    Whisper's own `generate` splits long audio into pieces and passes each of them to transformers' `generate`. The
    adapter replaces the latter: it takes one piece, and language and task as `decoder_input_ids`.
    """

    def __init__(self, model: nn.Module) -> None:
        warn_unless_tested()
        super().__init__(model)
        self.sorts_drawn_beams = sorts_drawn_beams()
        self.generation_config: object = getattr(self._hooks, "generation_config", None)
        self.max_position_embeddings: int | None = getattr(self._hooks.config, "max_position_embeddings", None)

    def check(self, model_kwargs: Mapping[str, object], generation_config: object) -> None:
        name = type(self._hooks).__name__
        given_cache(model_kwargs)
        is_whisper = self._hooks.config.model_type == "whisper"
        for hook in _REQUIRED_DEFAULTS:
            runs = hook == "generate" and (is_whisper or own_generate_runs())
            if not runs and not is_default(self._hooks, hook):
                raise NotImplementedError(
                    f"`model`={name}: its own `{hook}` replaces transformers', which is not available in this version"
                )
        legacy: dict[str, object] = getattr(self._hooks.config, "_get_generation_parameters", dict)()
        if generation_config is None and legacy:
            raise ValueError(
                f"`model.config` must not hold settings of generation, got {legacy}; "
                f"set them in `model.generation_config`"
            )
        if not self._uses(model_kwargs):
            unused = [f"`{name}`" for name, value in model_kwargs.items() if not self._uses({name: value})]
            raise ValueError(f"`model` does not use these arguments: {', '.join(unused)}")

    def prompt(
        self, inputs: object, model_kwargs: dict[str, Any], config: GenerationConfig, tokens: SpecialTokens
    ) -> Prompt:
        prompt, self._config = read_prompt(self._hooks, inputs, model_kwargs, config, tokens, self.device)
        self._callers_cache_name = given_cache_name(model_kwargs)
        self._unseen = unseen_length(self._hooks, prompt, self._callers_cache_name)
        return prompt

    def fit_positions(self, prompt: Prompt, max_new_tokens: int) -> int:
        length = prompt.embeds_length + prompt.input_ids.shape[1]
        if self.is_encoder_decoder and prompt.main_input_name == "input_ids":
            mask = prompt.model_kwargs.get("attention_mask")
            check_encoder_positions(self._hooks, prompt.main_input.shape[1], mask, name="input_ids")
        name = "decoder_input_ids" if self.is_encoder_decoder else prompt.main_input_name
        return fit_positions(self._hooks, max_new_tokens, length, prompt.mask, name=name)

    def start(
        self,
        prompt: Prompt,
        *,
        mode: GenerationMode,
        num_copies: int,
        max_new_tokens: int,
        hidden_states: bool = False,
        cache: StaticCache | None = None,
    ) -> None:
        """cache: a static cache that replaces the one of the settings."""
        config, kwargs = self._config, dict(prompt.model_kwargs)
        refuse_by_preparer(self._hooks, config, mode)
        self._batch_size, self._prompt_length = prompt.input_ids.shape
        self._prompt_ids = prompt.input_ids
        self._num_copies = num_copies
        self._max_new_tokens = max_new_tokens
        self._use_cache = config.use_cache is not False
        check_capacity(prompt, max_new_tokens, self._callers_cache_name)
        callers_cache = any(kwargs.get(name) is not None for name in self._names.arguments)
        kwargs |= {flag: True for flag in RECORDS if getattr(config, flag)}
        kwargs = with_root_weights(self._model, functools.partial(encode, self._hooks, prompt, kwargs, config))
        if config.return_dict_in_generate:
            self._start_records(kwargs)
        if hidden_states:
            kwargs["output_hidden_states"] = True
            self._hidden = HiddenStates(self._hooks)
        if "logits_to_keep" not in kwargs and "logits_to_keep" in inspect.signature(self._hooks.forward).parameters:
            kwargs["logits_to_keep"] = 1
        longest = prompt.embeds_length + self._prompt_length + max_new_tokens - 1
        if config.cache_implementation in STATIC_CACHES:
            longest = max(longest, getattr(config, "max_cache_len", None) or 0)
        if cache is not None and self.is_encoder_decoder:
            fit_encoding(kwargs, cache)

        def add_empty_cache() -> None:
            if cache is not None:
                cache.reset()
                self._kwargs[self._names.argument] = cache
                return
            sizes = {"batch_size": self._batch_size, "max_cache_length": longest}
            add_cache(self._hooks, self._kwargs, config, mode=mode, **sizes)
            grow_in_place(given_cache(self._kwargs), longest)

        kwargs["use_cache"] = self._use_cache
        self._kwargs = kwargs
        self.shows_cache = self._use_cache and (callers_cache or bool(config.return_dict_in_generate))
        self._add_empty_cache = add_empty_cache
        add_empty_cache()
        self._mode = mode
        # By transformers' rule, the caller's cache has a row per output row, or no row yet.
        self._expands_late = (
            num_copies > 1
            and not callers_cache
            # The newest outputs replace those of drafts, so they need a row per copy.
            and (self._grows_by_default or mode is not GenerationMode.ASSISTED_GENERATION)
            # The hook expands a decoder's tensors only, so given encoder outputs already have a row per copy.
            and (self.is_encoder_decoder or kwargs.get("encoder_outputs") is None)
            and not may_know_rows(self._hooks)
            and is_default(self._hooks, "_expand_inputs_for_generation")
            and (cache_verbs.can_expand(self.cache) if self._use_cache else True)
        )
        self.can_rewind = not self.shows_cache or cache_verbs.can_crop(self.cache)

    def idle(self) -> None:
        kwargs: dict[str, Any] = {"use_cache": False}
        rows = 1
        if self.is_encoder_decoder:
            kwargs |= {name: self._kwargs.get(name) for name in ("encoder_outputs", "attention_mask")}
            rows = kwargs["encoder_outputs"][0].shape[0]
        ids = torch.zeros((rows, 1), dtype=torch.int64, device=self._prompt_ids.device)
        inputs = self._names.for_forward(self._hooks.prepare_inputs_for_generation(ids, **kwargs))
        self._model(**inputs, return_dict=True)

    def hand_over(self) -> dict[str, object]:
        cut_to_size(self.cache)
        self._expand_inputs()
        return self._kwargs

    def prefill(self, prompt_ids: Tensor) -> Tensor:
        moves_rows = self._mode in cache_verbs.REORDERING_MODES and self._num_copies > 1
        if self._expands_late or moves_rows or self._mode in cache_verbs.CROPPING_MODES:
            self._states = ModuleStates(self._hooks)
        if self._expands_late:
            outputs = self._read(prompt_ids[:: self._num_copies])
            if not self._can_expand():
                outputs = self._read_again(prompt_ids)
        else:
            of_prompts = dict(self._kwargs)
            self._expand_inputs()
            outputs = self._read(prompt_ids)
            if moves_rows and self._states is not None and self._states.changed():
                outputs = self._find_rows(outputs, of_prompts, prompt_ids)
        self._check_reorder()
        rows = self._batch_size if self._expands_late else prompt_ids.shape[0]
        logits = tail_logits(outputs.logits, rows, 1, prompt_ids.device)[:, 0]
        if self._expands_late:
            logits = self._expand(logits)
        # The forward may have added layers.
        grow_in_place(self.cache, self._max_new_tokens)
        if self._updates is None:
            self._growing = GrowingInputs(self._kwargs, self._max_new_tokens, self.is_encoder_decoder)
        else:
            self._updates.begin(self._kwargs)
        if self._mode is GenerationMode.ASSISTED_GENERATION:
            self._prepare_rollback(prompt_ids, logits)
        return logits

    def _uses(self, model_kwargs: Mapping[str, object]) -> bool:
        """Whether the model uses all of the arguments."""
        try:
            self._hooks._validate_model_kwargs(rename_cache(model_kwargs, self._names.argument))
        except ValueError:
            return False
        return True

    def _read(self, prompt_ids: Tensor) -> ForwardOutput:
        """Reads the prompt, and keeps the cache and the records of the forward."""
        outputs = self._read_prompt(prompt_ids)
        if not self._grows_by_default:
            keep, hook = self._mode in cache_verbs.CROPPING_MODES, self._hooks._update_model_kwargs_for_generation
            update = functools.partial(hook, is_encoder_decoder=self.is_encoder_decoder, num_new_tokens=1)
            self._updates = OwnUpdates(update, keep=keep)
            self._kwargs = self._updates.start(outputs, self._kwargs)
        else:
            self._keep_cache(outputs)
        self._keep_records(outputs)
        return outputs

    def _read_prompt(self, prompt_ids: Tensor) -> ForwardOutput:
        """The outputs of one forward over the prompt, or of the last one over pieces of `prefill_chunk_size`."""
        size = self._config.prefill_chunk_size
        if size is None:
            return self._forward(prompt_ids, self._unseen, self._kwargs, is_first_iteration=True)
        embeds = None if self.is_encoder_decoder else self._kwargs.get("inputs_embeds")
        unread = self._unseen or (prompt_ids if embeds is None else embeds).shape[1]
        grown = GrowingInputs(dict(self._kwargs), 0, self.is_encoder_decoder)
        while True:
            length = min(size, unread)
            unread -= length
            kwargs = self._kwargs | grown.after(-unread)
            if embeds is not None:
                kwargs["inputs_embeds"] = embeds[:, : embeds.shape[1] - unread]
            ids = prompt_ids[:, : max(prompt_ids.shape[1] - unread, 0)]
            outputs = self._forward(ids, length, kwargs, is_first_iteration=True)
            if unread == 0:
                return outputs
            self._keep_cache(outputs)
            if self._hidden is not None:
                self._hidden.keep(outputs)

    def _prepare_rollback(self, prompt_ids: Tensor, logits: Tensor) -> None:
        """Prepares a `Rollback` for a cache that cannot crop, and tests whether the model reads several tokens at once.

        A model with its own hook for each token also needs this test.
        """
        self._rollback, cache = None, self.cache
        crops, updates = cache_verbs.can_crop(cache), self._updates
        if (crops and updates is None) or (updates is not None and updates.writes_in_place):
            return
        if not can_copy(cache):
            self.reads_at_once = updates is None
            return
        records, self.records = self.records, {}
        capacity = self._max_new_tokens - 1
        self.reads_at_once = not (updates is not None and updates.reads_outputs) and reads_at_once(
            self._hooks, cache, self._decode, prompt_ids, logits, capacity
        )
        self.records = records
        if self.cache is cache and not crops:
            self._rollback = Rollback(cache, self._decode, reads_at_once=self.reads_at_once)

    def _expand_inputs(self) -> None:
        if self._num_copies > 1:
            _, self._kwargs = self._hooks._expand_inputs_for_generation(
                expand_size=self._num_copies,
                is_encoder_decoder=self.is_encoder_decoder,
                input_ids=self._prompt_ids,
                **self._kwargs,
            )

    def _check_reorder(self) -> None:
        moves_rows = self._mode in cache_verbs.REORDERING_MODES and self._num_copies > 1
        if not moves_rows or self.cache is None or hasattr(self._hooks, "_reorder_cache"):
            return
        followed = "candidates" if self._mode is GenerationMode.CONTRASTIVE_SEARCH else "beams"
        try:
            cache_verbs.check_reorder(self.cache)
        except (TypeError, NotImplementedError) as error:
            raise NotImplementedError(
                f"`model`={type(self._hooks).__name__}: its cache cannot follow {followed}, {error}; `use_cache`=False "
                f"works"
            ) from error

    def _can_expand(self) -> bool:
        """Whether everything that the forward over the prompts made has one row per prompt in a known dimension."""
        assert self._states is not None
        if self._states.changed() or (self.cache is not None and not cache_verbs.can_expand(self.cache)):
            return False
        return all(is_by_rows(name, kept[-1], self._batch_size) for name, kept in self.records.items())

    def _expand(self, logits: Tensor) -> Tensor:
        if self.cache is not None:
            cache_verbs.expand(self.cache, self._num_copies)
        for kept in self.records.values():
            kept[-1] = map_leaves(lambda tensor: tensor.repeat_interleave(self._num_copies, dim=0), kept[-1])
        self._expand_inputs()
        return logits.repeat_interleave(self._num_copies, dim=0)

    def _find_rows(self, outputs: ForwardOutput, of_prompts: Mapping[str, object], prompt_ids: Tensor) -> ForwardOutput:
        """Finds the rows of the modules' states after a forward over all copies; returns the outputs to continue with.

        of_prompts: the arguments without copies.
        """
        assert self._states is not None
        if self._callers_cache_name is not None or self.is_encoder_decoder or may_know_rows(self._hooks):
            self._states.lose(prompt_ids.shape[0])
            return outputs
        for kept in self.records.values():
            kept.pop()
        self._kwargs = {name: value for name, value in of_prompts.items() if name not in self._names.arguments}
        self._add_empty_cache()
        self._read(prompt_ids[:: self._num_copies])
        return self._read_again(prompt_ids)

    def _read_again(self, prompt_ids: Tensor) -> ForwardOutput:
        """Reads every copy of the prompts from the beginning, and finds row dimensions by comparing shapes."""
        copies, batch_size, states = self._num_copies, self._batch_size, self._states
        assert states is not None
        few = {name: kept.pop() for name, kept in self.records.items()}
        few_states = states.changed()
        for name in self._names.arguments:
            self._kwargs.pop(name, None)
        self._expands_late = False
        if self._hidden is not None:
            self._hidden.clear()
        self._add_empty_cache()
        self._expand_inputs()
        outputs = self._read(prompt_ids)
        self.record_dims = {
            name: row_dims(few[name], kept[-1], copies, batch_size) for name, kept in self.records.items()
        }
        states.learn(few_states, copies, batch_size)
        return outputs
