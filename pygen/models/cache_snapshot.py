"""Copies of what a cache holds, for caches that cannot be cropped: recurrent and convolution states, full windows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pygen.models.rows import leaves, map_leaves

# Layers of transformers whose keys and values only grow at their end, so that a length tells what they held.
_APPENDED = ("DynamicLayer", "LinearAttentionAndFullAttentionLayer")
# Those that write keys and values behind a length of theirs, into tensors of fixed size.
_STATIC = ("StaticLayer", "LinearAttentionAndStaticFullAttentionLayer")
_KEYS = ("keys", "values")
_PLAIN = (int, float, str, type(None), type, torch.dtype, torch.device, torch.Size)


def can_copy(cache: Any) -> bool:
    """Whether a `Snapshot` finds all that `cache` holds: tensors and plain values, in attributes and containers."""
    return hasattr(cache, "__dict__") and all(
        _is_plain(value) and not hasattr(holder, "_dequantize")
        for holder in _holders(cache)
        for value in _copied(holder).values()
    )


class Snapshot:
    """What a cache holds now. `restore` puts it back, once; tensors that are written in place meanwhile are copies."""

    def __init__(self, cache: Any) -> None:
        self._parts = [(holder, _lengths(holder), _copy(_copied(holder))) for holder in _holders(cache)]

    def restore(self) -> None:
        for holder, lengths, copied in self._parts:
            for name, length in lengths.items():
                setattr(holder, name, getattr(holder, name)[..., :length, :])
            for name, value in copied.items():
                now = getattr(holder, name)
                if isinstance(value, Tensor) and isinstance(now, Tensor) and _kind(holder) in _STATIC:
                    # A captured forward reads it where it is.
                    now.copy_(value)
                else:
                    setattr(holder, name, value)


def rounding(cache: Any) -> float:
    """The largest `eps` of the dtypes that a cache holds; 0 where it holds no floats."""
    tensors = (tensor for holder in _holders(cache) for tensor in leaves(vars(holder)))
    return max((torch.finfo(tensor.dtype).eps for tensor in tensors if tensor.is_floating_point()), default=0.0)


def _holders(cache: Any) -> list[Any]:
    """The cache, or the decoder's in a pair, and its layers."""
    own = getattr(cache, "self_attention_cache", cache)
    return [own, *(getattr(own, "layers", None) or ())]


def _lengths(holder: Any) -> dict[str, int]:
    if _kind(holder) not in _APPENDED:
        return {}
    held = {name: getattr(holder, name) for name in _KEYS}
    return {name: tensor.shape[-2] for name, tensor in held.items() if isinstance(tensor, Tensor) and tensor.ndim > 1}


def _copied(holder: Any) -> dict[str, Any]:
    """The attributes of a cache or layer that are copied."""
    kind = _kind(holder)
    if kind == "DynamicLayer":
        return {}
    left_out = _KEYS if kind in (*_APPENDED, *_STATIC) else ("layers", "config")
    return {name: value for name, value in vars(holder).items() if name not in left_out}


def _kind(holder: Any) -> str | None:
    """The name of a layer's class where it is transformers' or pygen's own."""
    kind = type(holder)
    if (kind.__module__, kind.__name__) == ("pygen.models.growing_layer", "GrowingLayer"):
        return "DynamicLayer"
    return kind.__name__ if kind.__module__ == "transformers.cache_utils" else None


def _copy(values: dict[str, Any]) -> dict[str, Any]:
    copied: dict[str, Any] = map_leaves(torch.clone, values)
    return copied


def _is_plain(value: Any) -> bool:
    if type(value) is dict:
        return all(map(_is_plain, value.values()))
    if type(value) in (list, tuple):
        return all(map(_is_plain, value))
    return type(value) is Tensor or isinstance(value, _PLAIN)
