"""Adapter for any `nn.Module` whose forward takes `input_ids` and returns logits."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pygen.config.config import GenerationConfig, GenerationMode
from pygen.models import cache as cache_verbs
from pygen.models.devices import execution_device, input_device
from pygen.models.hidden_states import HiddenStates
from pygen.models.inputs import (
    GrowingInputs,
    mask_from_padding,
    position_ids_from_mask,
    repeat_rows,
    tail_logits,
)
from pygen.models.leaving_rows import fixed_input, select_inputs
from pygen.models.versions import cache_parameter, given_cache_name, output_cache
from pygen.models.wrappers import inner
from pygen.outputs import GenerateBeamDecoderOnlyOutput, GenerateDecoderOnlyOutput, GenerateOutput
from pygen.request.prompt import Prompt, check_ids, check_mask, given_input, start_ids, warn_of_right_padding
from pygen.request.settings import SpecialTokens

_ONE_BY_ONE = (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE, GenerationMode.DOLA_GENERATION)
# Settings that only a model of transformers supports.
_TRANSFORMERS_ONLY = ("output_attentions", "output_hidden_states", "cache_config", "prefill_chunk_size")


class ModuleAdapter:
    """A plain module during one call; see `ModelAdapter`.

    `forward` takes `input_ids` (rows, length) and, if its signature has them, `past_key_values` (None at first),
    `attention_mask` (rows, all positions so far), `position_ids` (rows, length) and `use_cache`. It returns logits
    (rows, length, vocab_size) or (rows, vocab_size); or a tuple that begins with them; or an object or mapping with
    `logits`.

    `forward` may also return a cache, as the tuple's second item or as `past_key_values`, and gets it back in the next
    step. Without a cache every step forwards the whole sequence. The name may also be `cache`, as in transformers from
    5.24 on. The adapter does not know the contents of a cache, so assisted decoding runs without one.

    Beam search moves the rows of the cache, in one of three ways. The module has a method
    `_reorder_cache(past_key_values, source_rows)` that returns the cache with its rows gathered. Or the cache has a
    method `reorder_cache(source_rows)`. Or it is a tuple with a pair of key and value (rows, heads, positions,
    head_dim) per layer. TypeError for any other cache.

    For contrastive search and DoLa `forward` also takes `output_hidden_states`, and returns an object or mapping with
    `hidden_states`.
    """

    is_encoder_decoder = False
    sorts_drawn_beams = True

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        parameters = inspect.signature(inner(model).forward).parameters
        self._names = frozenset(
            name for name, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
        )
        self._cache_name = cache_parameter(self._names)
        self.generation_config: object = getattr(model, "generation_config", None)
        self.max_position_embeddings: int | None = getattr(
            getattr(model, "config", None), "max_position_embeddings", None
        )
        self._device, self._input_device = execution_device(model), input_device(model)
        self.before_forward: Callable[[], None] = lambda: None
        self.can_rewind = self.can_crop = self.reads_at_once = True
        self.shows_cache = False
        self.records: dict[str, list[object]] = {}
        self.record_dims: dict[str, list[int | None]] = {}
        self.cache: Any = None
        self._kwargs: dict[str, Any] = {}
        self._growing = GrowingInputs({}, 0)
        self._hidden: HiddenStates | None = None

    def check(self, model_kwargs: Mapping[str, object], generation_config: object) -> None:
        if "input_ids" not in self._names:
            raise TypeError(f"`model`={type(self._model).__name__}: its forward must take `input_ids`")
        given = given_cache_name(model_kwargs)
        if given is not None and self._cache_name is not None:
            raise NotImplementedError(f"`{given}`: a plain module cannot be continued from a given cache")
        unused = [name for name, value in model_kwargs.items() if value is not None and name not in self._names]
        if unused:
            raise ValueError(f"`model` does not use these arguments: {', '.join(f'`{name}`' for name in unused)}")
        if model_kwargs.get("inputs_embeds") is not None:
            raise NotImplementedError("`inputs_embeds`: a plain module starts from `input_ids`")

    def prompt(
        self, inputs: object, model_kwargs: dict[str, Any], config: GenerationConfig, tokens: SpecialTokens
    ) -> Prompt:
        kwargs = dict(model_kwargs)
        for name in _TRANSFORMERS_ONLY:
            if getattr(config, name):
                raise NotImplementedError(f"`{name}`={getattr(config, name)!r} needs a model of transformers")
        if config.cache_implementation not in (None, "dynamic"):
            raise NotImplementedError(
                f"`cache_implementation`={config.cache_implementation!r} needs a model of transformers"
            )
        ids = given_input("input_ids", inputs, kwargs)
        if ids is None:
            ids = start_ids(tokens.bos, kwargs, self._device)
        ids = check_ids("input_ids", ids, self._input_device)
        mask = kwargs.get("attention_mask")
        if mask is not None:
            check_mask("attention_mask", mask, ids, read_name="input_ids", continues=False)
        elif "attention_mask" in self._names:
            mask = kwargs["attention_mask"] = mask_from_padding(ids, tokens.pad, tokens.eos)
        if "position_ids" in self._names and kwargs.get("position_ids") is None:
            kwargs["position_ids"] = position_ids_from_mask(torch.ones_like(ids) if mask is None else mask)
        warn_of_right_padding(ids, mask, tokens.pad)
        self._wants_cache = self._cache_name is not None and config.use_cache is not False
        self.shows_cache = bool(config.return_dict_in_generate)
        return Prompt(ids, mask, ids, "input_ids", kwargs)

    def fit_positions(self, prompt: Prompt, max_new_tokens: int) -> int:
        return max_new_tokens

    def start(
        self,
        prompt: Prompt,
        *,
        mode: GenerationMode,
        num_copies: int,
        max_new_tokens: int,
        hidden_states: bool = False,
    ) -> None:
        kwargs = dict(prompt.model_kwargs)
        self._batch_size, self._prompt_length = prompt.input_ids.shape
        self._num_copies = num_copies
        self._reorders = mode in cache_verbs.REORDERING_MODES and num_copies > 1
        self._use_cache = self._wants_cache and mode in (*_ONE_BY_ONE, *cache_verbs.REORDERING_MODES)
        if hidden_states:
            if "output_hidden_states" not in self._names:
                raise NotImplementedError(
                    f"`model`={type(self._model).__name__}: its forward must take `output_hidden_states` for "
                    f"{mode.value.replace('_', ' ')}"
                )
            kwargs["output_hidden_states"] = True
            self._hidden = HiddenStates(self._model)
        if "use_cache" in self._names:
            kwargs["use_cache"] = self._use_cache
        # The batch dimension of an unknown cache is unknown, so with a cache the prefill reads every copy.
        self._expands_late = num_copies > 1 and not self._use_cache
        self.can_crop = not self._use_cache
        self.can_rewind = self.can_crop or not self.shows_cache
        if num_copies > 1 and not self._expands_late:
            kwargs = self._expanded(kwargs)
        self._growing = GrowingInputs(kwargs, max_new_tokens)
        self._kwargs = kwargs

    def idle(self) -> None:
        ids = torch.zeros((1, 1), dtype=torch.int64, device=self._device)
        shapes = {"attention_mask": torch.ones_like(ids), "position_ids": ids}
        self._model(input_ids=ids, **{name: value for name, value in shapes.items() if name in self._names})

    def hand_over(self) -> dict[str, object]:
        kwargs = self._kwargs | self._growing.after(0)
        return self._expanded(kwargs) if self._expands_late else kwargs

    def prefill(self, prompt_ids: Tensor) -> Tensor:
        if not self._expands_late:
            logits = self._forward(prompt_ids, prompt_ids.shape[1])[:, 0]
            if self._reorders and self.cache is not None and not hasattr(self._model, "_reorder_cache"):
                self._check_reorder(prompt_ids.shape[1])
            return logits
        copies, batch_size = self._num_copies, self._batch_size
        logits = self._forward(prompt_ids[::copies], prompt_ids.shape[1])[:, 0]
        self._kwargs = self._expanded(self._kwargs)
        self._growing.expand(copies, batch_size)
        return logits.repeat_interleave(copies, dim=0)

    def _check_reorder(self, seen: int) -> None:
        cache_verbs.check_reorder(self.cache)
        if isinstance(self.cache, (tuple, list)):
            wrong = next((keys for keys, _ in self.cache if keys.shape[2] != seen), None)
            if wrong is not None:
                raise TypeError(
                    f"`past_key_values` must hold tensors (rows, heads, positions, head_dim), "
                    f"got {tuple(wrong.shape)} after {seen} positions"
                )

    def decode(self, token_ids: Tensor) -> Tensor:
        return self.decode_tail(token_ids, 1)[:, 0]

    def decode_tail(self, token_ids: Tensor, count: int) -> Tensor:
        return self._forward(token_ids, count if self.cache is not None else token_ids.shape[1], count)

    def take_hidden_states(self, layers: Sequence[int]) -> list[Tensor]:
        assert self._hidden is not None
        return self._hidden.take(layers)

    def rewind(self) -> None:
        """Does nothing: `can_rewind` is False for a cache that the caller gets."""

    def hold(self) -> None:
        """Does nothing: `crop` always works where `can_crop` is True."""

    def crop(self, num_tokens: int) -> bool:
        """Does nothing: `can_crop` is True only without a cache, where nothing needs forgetting."""
        return True

    def catch_up(self) -> None:
        """Does nothing: `crop` leaves no column unread."""

    def reorder(self, source_rows: Tensor, shared: Tensor, generated: int) -> None:
        if self.cache is None:
            return
        hook = getattr(self._model, "_reorder_cache", None)
        if hook is not None:
            self.cache = hook(self.cache, source_rows)
        else:
            self.cache = cache_verbs.reorder(self.cache, source_rows, shared, generated)

    def align_cache(self, rows: Tensor, num_tokens: int) -> None:
        if self.cache is None:
            return
        hook = getattr(self._model, "_reorder_cache", None)
        cache = cache_verbs.select_rows(self.cache, rows) if hook is None else hook(self.cache, rows)
        self.cache = cache_verbs.cut(cache, num_tokens)

    def rows_stay(self, rows: int) -> str | None:
        name = type(self._model).__name__
        if self.cache is not None and self.shows_cache:
            return f"the caller gets the cache that {name} returned, with all rows"
        if self.cache is not None and not self._can_select():
            return f"the cache of {name} has no method `reorder_cache`, and is no tuple of keys and values"
        fixed = fixed_input(self._kwargs, rows)
        if fixed is not None or not self._growing.can_select(rows):
            return f"pygen does not know the rows of `{fixed or 'position_ids'}`"
        return None

    def keep_rows(self, rows: Tensor) -> None:
        self._growing.select(rows)
        self._kwargs = select_inputs(self._kwargs, rows)
        if self.cache is not None:
            self.align_cache(rows, 0)

    def close(self) -> None:
        """Does nothing: the module made the cache as it is."""

    def recorded(self) -> dict[str, Any]:
        return {}

    def output_class(self, *, beams: bool) -> type[GenerateOutput]:
        return GenerateBeamDecoderOnlyOutput if beams else GenerateDecoderOnlyOutput

    def _can_select(self) -> bool:
        if hasattr(self._model, "_reorder_cache") or hasattr(self.cache, "reorder_cache"):
            return True
        try:
            cache_verbs.check_reorder(self.cache)
        except (TypeError, NotImplementedError):
            return False
        return True

    def _expanded(self, kwargs: dict[str, object]) -> dict[str, object]:
        return {name: repeat_rows(value, self._num_copies, self._batch_size) for name, value in kwargs.items()}

    def _forward(self, token_ids: Tensor, unseen: int, count: int = 1) -> Tensor:
        """The logits of the last `count` columns; the cache has not seen the last `unseen` ones."""
        input_ids = token_ids[:, -unseen:]
        inputs = self._kwargs | self._growing.after(token_ids.shape[1] - self._prompt_length)
        if "position_ids" in inputs:
            inputs["position_ids"] = inputs["position_ids"][..., -unseen:]
        if self._use_cache:
            assert self._cache_name is not None
            inputs[self._cache_name] = self.cache
        self.before_forward()
        outputs = self._model(input_ids=input_ids, **inputs)
        if self._hidden is not None:
            self._hidden.keep(outputs)
        logits, cache = unpack_outputs(outputs)
        if self._use_cache:
            self.cache = cache
        return tail_logits(logits, input_ids.shape[0], count, input_ids.device)


def unpack_outputs(outputs: object) -> tuple[object, Any]:
    """(logits, cache or None) of the output of a forward.

    Errors: TypeError for an output without logits.
    """
    if isinstance(outputs, Tensor):
        return outputs, None
    if isinstance(outputs, tuple):
        return outputs[0], outputs[1] if len(outputs) > 1 else None
    if isinstance(outputs, Mapping) and "logits" in outputs:
        return outputs["logits"], output_cache(outputs)
    if hasattr(outputs, "logits"):
        return outputs.logits, output_cache(outputs)
    raise TypeError(
        f"`model` must return a tensor, a tuple that begins with one, or an object with `logits`, "
        f"got {type(outputs).__name__}"
    )
