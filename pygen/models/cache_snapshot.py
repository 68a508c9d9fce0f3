"""Snapshots of caches that cannot be cropped, such as those with recurrent or convolution states or full windows."""

from __future__ import annotations

import torch
from torch import Tensor

from pygen.models.rows import leaves, map_leaves

# Layers of transformers that only append keys and values, so that a length is enough to restore them.
_APPENDED = ("DynamicLayer", "LinearAttentionAndFullAttentionLayer")
# Layers that store a length, and write keys and values after it into tensors of fixed size.
_STATIC = ("StaticLayer", "LinearAttentionAndStaticFullAttentionLayer")
_KEYS = ("keys", "values")
_PLAIN = (int, float, str, type(None), type, torch.dtype, torch.device, torch.Size)


def can_copy(cache: object) -> bool:
    """Whether a `Snapshot` can copy all of `cache`: tensors and plain values, in attributes and containers."""
    return hasattr(cache, "__dict__") and all(
        _is_plain(value) and not hasattr(holder, "_dequantize")
        for holder in _holders(cache)
        for value in _copied(holder).values()
    )


class Snapshot:
    """The current state of a cache, with copies of tensors that forwards overwrite. `restore` works once."""

    def __init__(self, cache: object) -> None:
        self._parts = [(holder, _lengths(holder), _copy(_copied(holder))) for holder in _holders(cache)]

    def restore(self) -> None:
        for holder, lengths, copied in self._parts:
            for name, length in lengths.items():
                setattr(holder, name, getattr(holder, name)[..., :length, :])
            for name, value in copied.items():
                now = getattr(holder, name)
                if isinstance(value, Tensor) and isinstance(now, Tensor) and _kind(holder) in _STATIC:
                    # A captured forward reads the address of this tensor.
                    now.copy_(value)
                else:
                    setattr(holder, name, value)


def rounding(cache: object) -> float:
    """The largest `eps` of the floating-point dtypes in a cache; 0 without any."""
    tensors = (tensor for holder in _holders(cache) for tensor in leaves(vars(holder)))
    return max((torch.finfo(tensor.dtype).eps for tensor in tensors if tensor.is_floating_point()), default=0.0)


def _holders(cache: object) -> list[object]:
    """The cache, or the decoder's cache of a pair, and its layers."""
    own = getattr(cache, "self_attention_cache", cache)
    return [own, *(getattr(own, "layers", None) or ())]


def _lengths(holder: object) -> dict[str, int]:
    """The lengths of keys and values in a layer that only appends."""
    if _kind(holder) not in _APPENDED:
        return {}
    tensors = {name: getattr(holder, name) for name in _KEYS}
    return {
        name: tensor.shape[-2] for name, tensor in tensors.items() if isinstance(tensor, Tensor) and tensor.ndim > 1
    }


def _copied(holder: object) -> dict[str, object]:
    """The attributes of a cache or layer that a snapshot copies."""
    kind = _kind(holder)
    if kind == "DynamicLayer":
        return {}
    left_out = _KEYS if kind in (*_APPENDED, *_STATIC) else ("layers", "config")
    return {name: value for name, value in vars(holder).items() if name not in left_out}


def _kind(holder: object) -> str | None:
    """The name of a layer's class if it is transformers' or pygen's own, else None."""
    kind = type(holder)
    if (kind.__module__, kind.__name__) == ("pygen.models.growing_layer", "GrowingLayer"):
        return "DynamicLayer"
    return kind.__name__ if kind.__module__ == "transformers.cache_utils" else None


def _copy(values: dict[str, object]) -> dict[str, object]:
    copied: dict[str, object] = map_leaves(torch.clone, values)
    return copied


def _is_plain(value: object) -> bool:
    if type(value) is dict:
        return all(map(_is_plain, value.values()))
    if isinstance(value, (list, tuple)) and type(value) in (list, tuple):
        return all(map(_is_plain, value))
    return type(value) is Tensor or isinstance(value, _PLAIN)
