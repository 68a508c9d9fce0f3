"""The forwards of a model of transformers during one call, with its cache, records and states."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pygen.models import cache as cache_verbs
from pygen.models.devices import input_device
from pygen.models.foreign_hooks import may_know_rows
from pygen.models.growing_layer import cut_to_size
from pygen.models.hidden_states import HiddenStates
from pygen.models.inputs import GrowingInputs, tail_logits
from pygen.models.leaving_rows import Departed, can_leave, fixed_input, keep_rows, select_inputs
from pygen.models.outputs import output_class
from pygen.models.own_updates import OwnUpdates
from pygen.models.protocols import ForwardOutput, TransformersModel
from pygen.models.rollback import Rollback
from pygen.models.rows import ModuleStates, map_leaves
from pygen.models.transformers_inputs import is_default, preparer
from pygen.models.versions import HookNames
from pygen.models.wrappers import inner
from pygen.outputs import GenerateOutput

# The fields of a forward's output for the flag of a setting; the call's output has the same names.
RECORDS = {
    "output_attentions": ("attentions",),
    "output_hidden_states": ("hidden_states",),
}
_ENCODER_DECODER_RECORDS = {
    "output_attentions": ("decoder_attentions", "cross_attentions"),
    "output_hidden_states": ("decoder_hidden_states",),
}


class TransformersForwards:
    """The part of `ModelAdapter` that decoding loops use."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._hooks: TransformersModel = inner(model)
        self._names = HookNames(self._hooks)
        self._grows_by_default = is_default(self._hooks, "_update_model_kwargs_for_generation")
        self.is_encoder_decoder = bool(self._hooks.config.is_encoder_decoder)
        self.device: torch.device | None = input_device(self._hooks)
        self.before_forward: Callable[[], None] = lambda: None
        self.can_rewind = self.reads_at_once = True
        self.shows_cache = False
        self.records: dict[str, list[object]] = {}
        self.record_dims: dict[str, list[int | None]] = {}
        self._use_cache = True
        self._batch_size = self._num_copies = 1
        self._prompt_length = 0
        self._states: ModuleStates | None = None
        self._hidden: HiddenStates | None = None
        self._rollback: Rollback | None = None
        self._departed: Departed | None = None
        self._encoder_records: dict[str, object] = {}
        self._kwargs: dict[str, Any] = {}
        self._growing: GrowingInputs | None = None
        self._updates: OwnUpdates | None = None

    def decode(self, token_ids: Tensor) -> Tensor:
        return self.decode_tail(token_ids, 1)[:, 0]

    def decode_tail(self, token_ids: Tensor, count: int) -> Tensor:
        if self._rollback is not None:
            return self._rollback.decode(token_ids, count)
        if self.reads_at_once or count == 1:
            return self._decode(token_ids, count, count)
        ends = range(token_ids.shape[1] - count + 1, token_ids.shape[1] + 1)
        return torch.cat([self._decode(token_ids[:, :end], 1, 1) for end in ends], dim=1)

    def take_hidden_states(self, layers: Sequence[int]) -> list[Tensor]:
        assert self._hidden is not None
        return self._hidden.take(layers)

    def rewind(self) -> None:
        for kept in self.records.values():
            kept.pop()
        if self.shows_cache:
            self.crop(1)

    def hold(self) -> None:
        if self._rollback is not None:
            self._rollback.hold()
        if self._updates is not None:
            self._updates.hold()

    def crop(self, num_tokens: int) -> bool:
        if self._rollback is not None:
            return self._rollback.take_back(num_tokens)
        if self.cache is not None:
            cache_verbs.crop(self.cache, num_tokens)
        return True

    def catch_up(self) -> None:
        if self._rollback is not None and self.shows_cache:
            self._rollback.catch_up()

    def reorder(self, source_rows: Tensor, shared: Tensor, generated: int) -> None:
        if self._states is not None:
            self._states.reorder(source_rows)
        name = self._cache_name
        if name is None:
            return
        cache, hook = self._kwargs[name], getattr(self._hooks, "_reorder_cache", None)
        if hook is not None:
            self._kwargs[name] = hook(cache, source_rows)
        else:
            self._kwargs[name] = cache_verbs.reorder(cache, source_rows, shared, generated)

    def align_cache(self, rows: Tensor, num_tokens: int) -> None:
        name, hook = self._cache_name, getattr(self._hooks, "_reorder_cache", None)
        if name is None:
            return
        cache = self._kwargs[name]
        cache = cache_verbs.select_rows(cache, rows) if hook is None else hook(cache, rows)
        self._kwargs[name] = cache_verbs.cut(cache, num_tokens)

    def rows_stay(self, rows: int) -> str | None:
        name = type(self._hooks).__name__
        if not self._grows_by_default or not is_default(self._hooks, "_expand_inputs_for_generation"):
            return f"{name} prepares the inputs of its rows by its own methods"
        if (owner := preparer(self._hooks)) is not None:
            return f"{type(owner).__name__} prepares the inputs"
        if may_know_rows(self._hooks):
            return f"hooks of {name} may know the rows"
        if self.cache is not None and not can_leave(self.cache):
            return f"a {type(self.cache).__name__} of {name} stores more than keys and values that grow"
        fixed = fixed_input({name: v for name, v in self._kwargs.items() if name not in self._names.arguments}, rows)
        if fixed is not None or (self._growing is not None and not self._growing.can_select(rows)):
            return f"pygen does not know the rows of `{fixed or 'position_ids'}`"
        return None

    def keep_rows(self, rows: Tensor) -> None:
        assert self._growing is not None
        self._growing.select(rows)
        self._kwargs = select_inputs(self._kwargs, rows)
        if self.cache is not None:
            if self.shows_cache:
                self._departed = self._departed or Departed(self._batch_size * self._num_copies)
                self._departed.take(self.cache, rows)
            keep_rows(self.cache, rows)

    def close(self) -> None:
        if self._departed is not None:
            self._departed.put_back(self.cache)
        if self.shows_cache:
            cut_to_size(self.cache)

    @property
    def can_crop(self) -> bool:
        if self._updates is not None and self._updates.writes_in_place:
            return False
        if not self._use_cache:
            return True
        kept = self._states is not None and self._states.changed()
        return not kept and (self._rollback is not None or cache_verbs.can_crop(self.cache))

    @property
    def cache(self) -> Any:
        return None if self._cache_name is None else self._kwargs[self._cache_name]

    def replace_cache(self, cache: object) -> None:
        """Replaces the cache that the caller gets."""
        assert self._cache_name is not None
        self._kwargs[self._cache_name] = cache

    @property
    def hooks(self) -> TransformersModel:
        """The model, without the wrapper that compiles it."""
        return self._hooks

    def decode_arguments(self) -> tuple[dict[str, Any], GrowingInputs]:
        """The inputs of a forward over generated tokens, after `prefill`: the constant and the growing ones."""
        assert self._growing is not None
        return self._kwargs, self._growing

    @property
    def encoder_outputs(self) -> Any:
        """The outputs of the encoder, after `start`; None without an encoder."""
        return self._kwargs.get("encoder_outputs")

    def recorded(self) -> dict[str, Any]:
        kept = {name: tuple(entries) for name, entries in self.records.items()}
        return {**self._encoder_records, **kept}

    def output_class(self, *, beams: bool) -> type[GenerateOutput]:
        return output_class(beams=beams, is_encoder_decoder=self.is_encoder_decoder)

    @property
    def _cache_name(self) -> str | None:
        return next((name for name in self._names.arguments if self._kwargs.get(name) is not None), None)

    @property
    def _cache_argument(self) -> dict[str, object]:
        return {} if self._cache_name is None else {self._cache_name: self.cache}

    def _decode(self, token_ids: Tensor, unread: int, count: int) -> Tensor:
        """Reads the last `unread` columns; returns logits, and adds to `records`, for the last `count` of them."""
        kwargs = self._kwargs
        generated = token_ids.shape[1] - self._prompt_length
        if self._growing is not None:
            kwargs = kwargs | self._growing.after(generated)
        elif self._updates is not None:
            kwargs = self._updates.arguments(generated - unread, unread) | self._cache_argument
        if count > 1 and "logits_to_keep" in kwargs:
            kwargs = kwargs | {"logits_to_keep": count}
        with self._hooks._optimize_model_for_decode():
            outputs = self._forward(token_ids, unread if self._use_cache else None, kwargs)
        self._keep(outputs)
        if count < unread:
            for kept in self.records.values():
                whole = kept.pop()
                if count > 0:
                    kept.append(map_leaves(lambda tensor: tensor[..., -count:, :], whole))
        return tail_logits(outputs.logits, token_ids.shape[0], count, token_ids.device)

    def _forward(
        self, token_ids: Tensor, length: int | None, kwargs: dict[str, object], **first: bool
    ) -> ForwardOutput:
        inputs = self._hooks.prepare_inputs_for_generation(token_ids, next_sequence_length=length, **first, **kwargs)
        if "logits_to_keep" in inputs and "logits_to_keep" in kwargs:
            # Some hooks replace it by the number in the config.
            inputs["logits_to_keep"] = kwargs["logits_to_keep"]
        self.before_forward()
        outputs: ForwardOutput = self._model(**self._names.for_forward(inputs), return_dict=True)
        return outputs

    def _start_records(self, kwargs: dict[str, Any]) -> None:
        for flag, names in (_ENCODER_DECODER_RECORDS if self.is_encoder_decoder else RECORDS).items():
            if flag not in kwargs:
                continue
            self.records |= {name: [] for name in names}
            if self.is_encoder_decoder:
                states = flag.removeprefix("output_")
                self._encoder_records[f"encoder_{states}"] = kwargs["encoder_outputs"].get(states)

    def _keep(self, outputs: ForwardOutput) -> None:
        if self._updates is None:
            self._keep_cache(outputs)
        else:
            self._kwargs = self._updates.add(outputs)
        self._keep_records(outputs)

    def _keep_records(self, outputs: ForwardOutput) -> None:
        if self._hidden is not None:
            self._hidden.keep(outputs)
        for name, kept in self.records.items():
            kept.append(getattr(outputs, name, None))

    def _keep_cache(self, outputs: ForwardOutput) -> None:
        for name, argument in self._names.returned.items():
            if name in outputs:
                self._kwargs[argument] = outputs[name]
                break
