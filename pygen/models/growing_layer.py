"""A layer of transformers' dynamic cache that appends in place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import cache_utils

from pygen.models.cache import layers_of

# Without types, because transformers' own ignore the state of an empty layer.
_DynamicLayer: Any = cache_utils.DynamicLayer

# A buffer's spare positions: a quarter of those in use, and at least 64.
_SPARE_PART, _MIN_SPARE = 4, 64


class GrowingLayer(_DynamicLayer):
    """A `DynamicLayer` that writes new positions into spare ones, instead of copying all positions for every token.

    `keys` and `values` are views of the positions in use. Other operations on the layer (crop, reorder, repeat) may
    replace them by other tensors.
    """

    keys: Tensor
    values: Tensor

    def __init__(self, max_length: int, plain: object = None) -> None:
        """Continues the layer `plain`, or starts empty.

        max_length: the positions that the call may need; buffers exceed it only if the text does.
        """
        super().__init__()
        self._plain = _DynamicLayer() if plain is None else plain
        self.__dict__.update(vars(self._plain))
        self._max_length = max_length
        self._buffers: dict[str, Tensor] = {}

    def cut_to_size(self) -> object:
        """The plain layer, with tensors of exactly the positions in use."""
        for name, value in vars(self).items():
            if name not in ("_plain", "_max_length", "_buffers"):
                setattr(self._plain, name, _exact(value) if name in ("keys", "values") else value)
        return self._plain

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Appends states (rows, heads, count, head_dim) and returns all of them."""
        # A compiled forward cannot compare addresses, and torch would compile it again for every new buffer.
        if torch.compiler.is_compiling():
            appended: tuple[Tensor, Tensor] = super().update(key_states, value_states, *args, **kwargs)
            return appended
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.keys = self._appended("keys", self.keys, key_states)
        self.values = self._appended("values", self.values, value_states)
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        """Row r becomes the previous row `indices[r]`, in buffers with as many spare positions as before."""
        for name in ("keys", "values"):
            used = getattr(self, name)
            if not isinstance(used, Tensor) or not used.numel():
                continue
            buffer = self._buffers.pop(name, used)
            rows = indices.to(used.device)
            fewer = used.new_empty((len(rows), used.shape[1], max(buffer.shape[2], used.shape[2]), used.shape[3]))
            torch.index_select(used, 0, rows, out=fewer[:, :, : used.shape[2]])
            self._buffers[name] = fewer
            setattr(self, name, fewer[:, :, : used.shape[2]])

    def _appended(self, name: str, used: Tensor, states: Tensor) -> Tensor:
        length = used.shape[-2] if used.numel() else 0
        end = length + states.shape[-2]
        buffer = self._buffers.get(name)
        in_buffer = buffer is not None and (length == 0 or used.data_ptr() == buffer.data_ptr())
        if buffer is None or not in_buffer or buffer.shape[:2] != states.shape[:2] or buffer.shape[2] < end:
            spare = max(end // _SPARE_PART, _MIN_SPARE)
            capacity = max(end, min(end + spare, self._max_length))
            buffer = states.new_empty((*states.shape[:2], capacity, states.shape[3]))
            if length:
                buffer[:, :, :length] = used
            self._buffers[name] = buffer
        buffer[:, :, length:end] = states
        return buffer[:, :, :end]


def make_full(cache: object, length: int) -> None:
    """Replaces the empty sliding windows of a cache, or of the decoder's in a pair, by layers that drop no position.

    Static ones get `length` positions. The model's mask still hides what a window would drop.
    """
    made: dict[type, Callable[[], object]] = {
        cache_utils.DynamicSlidingWindowLayer: _DynamicLayer,
        cache_utils.StaticSlidingWindowLayer: lambda: cache_utils.StaticLayer(max_cache_len=length),
    }
    layers = layers_of(cache)
    for i, layer in enumerate(layers):
        if type(layer) in made:
            layers[i] = made[type(layer)]()


def _exact(used: Tensor | None) -> Tensor | None:
    if used is None or used.untyped_storage().nbytes() == used.numel() * used.element_size():
        return used
    return used.clone(memory_format=torch.contiguous_format)


def grow_in_place(cache: object, max_added: int) -> None:
    """Replaces the dynamic layers of a `DynamicCache`, or of the decoder's in a pair, by ones that append in place.

    max_added: the number of positions that the call may add.
    """
    cache = getattr(cache, "self_attention_cache", cache)
    if type(cache) is not cache_utils.DynamicCache or cache.offloading:
        return
    cache.layers = [
        GrowingLayer(layer.get_seq_length() + max_added, layer) if type(layer) is cache_utils.DynamicLayer else layer
        for layer in cache.layers
    ]


def cut_to_size(cache: object) -> None:
    """Undoes `grow_in_place`."""
    layers = layers_of(cache)
    for i, layer in enumerate(layers):
        if isinstance(layer, GrowingLayer):
            layers[i] = layer.cut_to_size()
