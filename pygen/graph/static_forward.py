"""The forward of a captured step: a model of transformers over static inputs and a static cache."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Collection, Hashable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pygen.graph.cuda_graph import CompileOptions
from pygen.graph.static_cache import StaticCache
from pygen.models.inputs import GrowingInputs, tail_logits
from pygen.models.transformers_inputs import is_default
from pygen.models.versions import HookNames, without_cache

if TYPE_CHECKING:
    from pygen.models.transformers import TransformersAdapter


_DECODER_MASK, _DECODER_POSITIONS = "decoder_attention_mask", "decoder_position_ids"


class StaticForward:
    """`run()` reads one token per row and leaves the scores of the next in `logits`.

    Everything that changes from step to step is changed on the device, by the forward itself: the cache's length, and
    the positions. So the forward may be captured and replayed, once for each step. What differs between calls, of an
    encoder-decoder model its mask and the encoder's output, is copied into buffers that the forward reads.

        logits = model(token_ids, mask, positions, cache);  positions += 1

    cache: of `rows` and `capacity`. logits: (rows, vocab_size), where the last run left them.
    Nothing here keeps the model alive.
    """

    def __init__(
        self, adapter: TransformersAdapter, cache: StaticCache, compile_options: CompileOptions | None
    ) -> None:
        """`adapter` has read a prompt with `cache`."""
        self.cache = cache
        self.logits = torch.empty(0, device="cpu")
        self._hooks, self._names = weakref.ref(adapter.hooks), HookNames(adapter.hooks)
        self._call = _call if compile_options is None else torch.compile(_call, **compile_options)
        kwargs, growing = adapter.decode_arguments()
        self._kwargs = {name: _own(value) for name, value in _fixed(kwargs).items() if value is not cache}
        self._cache_name = next(name for name, value in kwargs.items() if value is cache)
        self._mask: dict[str, Tensor] = {}
        self._current: dict[str, Tensor] = {}
        self._first_positions: Tensor | int | None = None
        if adapter.is_encoder_decoder:
            self._add_decoder_inputs(inspect.signature(adapter.hooks.forward).parameters)
        for name, value in growing.at(1).items():
            if _is_mask(name):
                self._mask[name] = value.new_ones((value.shape[0], cache.capacity))
            else:
                self._current[name] = value.clone(memory_format=torch.contiguous_format)

    def _add_decoder_inputs(self, names: Collection[str]) -> None:
        """What a decoder may make for itself where it is not given, by numbers of the host."""
        rows, device = self.cache.rows, self.cache.device_length.device
        if _DECODER_MASK in names:
            self._mask[_DECODER_MASK] = torch.ones((rows, self.cache.capacity), dtype=torch.int64, device=device)
        if _DECODER_POSITIONS in names:
            self._current[_DECODER_POSITIONS] = torch.zeros((rows, 1), dtype=torch.int64, device=device)

    def take_over(self, adapter: TransformersAdapter) -> None:
        """Copies what the forwards of a call are given besides its growing inputs; `adapter` has read its prompt."""
        kwargs, growing = adapter.decode_arguments()
        for name, value in _fixed(kwargs).items():
            if value is not self.cache:
                _copy(value, self._kwargs[name])
        grown = growing.after(1)
        if _DECODER_POSITIONS not in self._current or _DECODER_POSITIONS in grown:
            return
        self._first_positions = self.cache.length
        if not is_default(adapter.hooks, "prepare_inputs_for_generation"):
            # Of the text's own mask: ours is longer, and positions that are counted in it would begin at its end.
            ids = self._current[_DECODER_POSITIONS]
            inputs = adapter.hooks.prepare_inputs_for_generation(ids, next_sequence_length=1, **kwargs, **grown)
            self._first_positions = inputs.get(_DECODER_POSITIONS, self.cache.length)

    def begin(self, growing: GrowingInputs, generated: int, length: int) -> None:
        """Positions the buffers so that the next run reads the last of `generated` tokens, after `length` positions."""
        self.cache.set_length(length)
        for name, value in growing.after(0).items():
            if _is_mask(name):
                self._mask[name].fill_(1)[:, : value.shape[1]] = value
        for name, value in growing.at(generated).items():
            if not _is_mask(name):
                self._current[name].copy_(value)
        if self._first_positions is not None:
            self._current[_DECODER_POSITIONS].fill_(generated - 1).add_(self._first_positions)

    def run(self, token_ids: Tensor) -> None:
        """`token_ids`: (rows,) int64."""
        self.logits = self.logits_after(token_ids)

    def logits_after(self, token_ids: Tensor) -> Tensor:
        """What `run` leaves in `logits`; here `logits` do not change."""
        hooks = self._hooks()
        assert hooks is not None
        kwargs = {**self._kwargs, **self._mask, **self._current, self._cache_name: self.cache}
        with hooks._optimize_model_for_decode():
            ids = token_ids[:, None]
            inputs = hooks.prepare_inputs_for_generation(ids, next_sequence_length=1, **kwargs)
            outputs = self._call(hooks, self._names.for_forward(inputs))
        for name, value in self._current.items():
            if name.endswith("position_ids"):
                value.add_(1)
        return tail_logits(outputs.logits, token_ids.shape[0], 1, token_ids.device)[:, 0]


def _call(model: Any, inputs: dict[str, Any]) -> Any:
    return model(**inputs, return_dict=True)


def _fixed(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Without embeddings, which only the first forward reads."""
    return {name: value for name, value in kwargs.items() if name != "inputs_embeds"}


def _tensors(outputs: Mapping[str, object]) -> dict[str, Tensor]:
    """Of the encoder's outputs; its states of all layers are for the caller only."""
    return {name: value for name, value in outputs.items() if isinstance(value, Tensor)}


def _own(value: Any) -> Any:
    """A copy of tensors; other values unchanged."""
    if isinstance(value, Mapping):
        return type(value)(**{name: _own(tensor) for name, tensor in _tensors(value).items()})
    return value.clone(memory_format=torch.contiguous_format) if isinstance(value, Tensor) else value


def _copy(value: object, own: Any) -> None:
    if isinstance(value, Mapping):
        for name, tensor in _tensors(value).items():
            own[name].copy_(tensor)
    elif isinstance(value, Tensor):
        own.copy_(value)


def _form(value: object) -> Hashable:
    """The part of an argument that a capture bakes in: of tensors shape and dtype, since reading values would sync."""
    if isinstance(value, Mapping):
        return type(value).__name__, *((name, _form(tensor)) for name, tensor in _tensors(value).items())
    return (str(value.dtype), tuple(value.shape)) if isinstance(value, Tensor) else repr(value)


def _is_mask(name: str) -> bool:
    return name.endswith("attention_mask")


def fixed_arguments(adapter: TransformersAdapter) -> tuple[Hashable, ...]:
    """The arguments of the forward that a capture bakes in: calls that differ in them cannot share it."""
    kwargs, growing = adapter.decode_arguments()
    values = [(name, _form(value)) for name, value in sorted(_fixed(without_cache(kwargs)).items())]
    shapes = [(name, str(value.dtype), tuple(value.shape[:-1])) for name, value in sorted(growing.at(1).items())]
    return (*values, *shapes)
