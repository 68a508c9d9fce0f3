"""A layer of transformers' dynamic cache that appends in place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import cache_utils

# transformers' types leave out what a layer is before it holds anything.
_DynamicLayer: Any = cache_utils.DynamicLayer

# Positions to have room for beyond those in use: this part of them, and at least so many.
_SPARE_PART, _LEAST_SPARE = 4, 64


class GrowingLayer(_DynamicLayer):
    """A `DynamicLayer` that writes new positions behind those in use, where that copies all of them for every token.

    `keys` and `values` are views of the positions in use. What else is done to a layer, crop, reorder, repeat, may put
    other tensors in their place.
    """

    keys: Tensor
    values: Tensor

    def __init__(self, most: int, plain: Any = None) -> None:
        """Goes on from what the layer `plain` holds; most: positions that the call may need, more are no error."""
        super().__init__()
        self._plain = _DynamicLayer() if plain is None else plain
        self.__dict__.update(vars(self._plain))
        self._most = most
        self._rooms: dict[str, Tensor] = {}

    def cut_to_size(self) -> Any:
        """The plain layer again, with tensors of its own that hold the positions in use and nothing else."""
        for name, value in vars(self).items():
            if name not in ("_plain", "_most", "_rooms"):
                setattr(self._plain, name, _exact(value) if name in ("keys", "values") else value)
        return self._plain

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Appends states (rows, heads, count, head_dim) and returns all of them."""
        # A compiled forward cannot compare addresses, and would be compiled anew for every room.
        if torch.compiler.is_compiling():
            appended: tuple[Tensor, Tensor] = super().update(key_states, value_states, *args, **kwargs)
            return appended
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.keys = self._appended("keys", self.keys, key_states)
        self.values = self._appended("values", self.values, value_states)
        return self.keys, self.values

    def _appended(self, name: str, used: Tensor, states: Tensor) -> Tensor:
        length = used.shape[-2] if used.numel() else 0
        end = length + states.shape[-2]
        room = self._rooms.get(name)
        lies_there = room is not None and (length == 0 or used.data_ptr() == room.data_ptr())
        if room is None or not lies_there or room.shape[:2] != states.shape[:2] or room.shape[2] < end:
            spare = max(end // _SPARE_PART, _LEAST_SPARE)
            capacity = max(end, min(end + spare, self._most))
            room = states.new_empty((*states.shape[:2], capacity, states.shape[3]))
            if length:
                room[:, :, :length] = used
            self._rooms[name] = room
        room[:, :, length:end] = states
        return room[:, :, :end]


def make_full(cache: Any, length: int) -> None:
    """Makes the empty sliding windows of a cache, or of the decoder's in a pair, layers that keep everything; static
    ones `length` positions. What a window hides is hidden by the model's mask as well."""
    cache = getattr(cache, "self_attention_cache", cache)
    made: dict[type, Callable[[], Any]] = {
        cache_utils.DynamicSlidingWindowLayer: _DynamicLayer,
        cache_utils.StaticSlidingWindowLayer: lambda: cache_utils.StaticLayer(max_cache_len=length),
    }
    layers: Any = getattr(cache, "layers", ())
    for i, layer in enumerate(layers):
        if type(layer) in made:
            layers[i] = made[type(layer)]()


def _exact(used: Tensor | None) -> Tensor | None:
    if used is None or used.untyped_storage().nbytes() == used.numel() * used.element_size():
        return used
    return used.clone(memory_format=torch.contiguous_format)


def grow_in_place(cache: Any, most: int) -> None:
    """Makes the dynamic layers of a `DynamicCache`, or of the decoder's in a pair, ones that append in place.

    most: positions that the call may add.
    """
    cache = getattr(cache, "self_attention_cache", cache)
    if type(cache) is not cache_utils.DynamicCache or cache.offloading:
        return
    cache.layers = [
        GrowingLayer(layer.get_seq_length() + most, layer) if type(layer) is cache_utils.DynamicLayer else layer
        for layer in cache.layers
    ]


def cut_to_size(cache: Any) -> None:
    """Takes `grow_in_place` back."""
    layers: Any = getattr(getattr(cache, "self_attention_cache", cache), "layers", None) or ()
    for place, layer in enumerate(layers):
        if isinstance(layer, GrowingLayer):
            layers[place] = layer.cut_to_size()
