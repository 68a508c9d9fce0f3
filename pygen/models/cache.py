"""Verbs over any key-value cache: what a loop needs done to it, whatever the cache's class."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pygen.ops.reorder_cache import reorder_cache

# Layers that hold keys and values only, position after position, the newest last.
_PLAIN_LAYERS = {
    "pygen.models.growing_layer": ("GrowingLayer",),
    "transformers.cache_utils": (
        "DynamicLayer",
        "DynamicSlidingWindowLayer",
        "StaticLayer",
        "StaticSlidingWindowLayer",
    ),
}
# Methods of transformers that know of layers, or of keys and values, and of nothing that a subclass adds.
_PLAIN_METHODS = ("Cache.reorder_cache", "CacheLayerMixin.reorder_cache")


def num_positions(cache: Any) -> int | None:
    """How many positions `cache` has seen; None where it does not count them, as recurrent states alone do not."""
    layers = getattr(cache, "layers", None)
    counts = any(hasattr(layer, "get_seq_length") for layer in layers) if layers else hasattr(cache, "get_seq_length")
    return int(cache.get_seq_length()) if counts else None


def can_expand(cache: Any) -> bool:
    """Whether `expand` repeats everything the cache holds.

    Layers that hold more than keys and values inherit a `batch_repeat_interleave` that knows these only: they do not
    count.
    """
    if hasattr(cache, "cross_attention_cache"):
        return can_expand(cache.self_attention_cache) and can_expand(cache.cross_attention_cache)
    if _reorders_suffixes(cache):
        return True
    layers = getattr(cache, "layers", None)
    if layers is None or not hasattr(cache, "batch_repeat_interleave"):
        return False
    kinds = [type(layer) for layer in layers]
    if not kinds:
        kinds = [getattr(cache, "layer_class_to_replicate", None) or object]
    return all(hasattr(kind, "batch_repeat_interleave") and not _holds_more(kind) for kind in kinds)


def expand(cache: Any, num_copies: int) -> None:
    """Repeats every row of `cache` `num_copies` times, copies of a row side by side, in place."""
    cache.batch_repeat_interleave(num_copies)


def can_crop(cache: Any, *, now: bool = False) -> bool:
    """Whether `crop` gives back the very state before the dropped tokens: full attention over keys and values only.

    now: windows count too that are not full yet.
    """
    if hasattr(cache, "cross_attention_cache"):
        return can_crop(cache.self_attention_cache, now=now)
    if _reorders_suffixes(cache):
        return True
    layers = getattr(cache, "layers", None) or ()
    return (
        len(layers) > 0
        and hasattr(cache, "crop")
        and not any(_has_rows(value) for name, value in vars(cache).items() if name != "layers")
        and not any(getattr(layer, "is_sliding", False) and not (now and _is_not_full(layer)) for layer in layers)
        and all((hasattr(layer, "crop") or _is_static(layer)) and not _holds_more(layer) for layer in layers)
    )


def crop(cache: Any, num_tokens: int) -> None:
    """Drops the last `num_tokens` positions of `cache` in place.

    transformers 5.6.1 reads a positive number as the length to keep and later versions refuse it; a negative number
    means the same in all of them.
    """
    if num_tokens == 0:
        return
    own = getattr(cache, "self_attention_cache", cache)
    layers = getattr(own, "layers", ())
    longest = max((_length(layer) or 0 for layer in layers), default=0)
    held = [layer for layer in layers if getattr(layer, "is_initialized", True) and _length(layer) in (None, longest)]
    if len(held) < len(layers):
        # Some models leave layers empty, and some the whole cache. A layer that has become shorter than others, where
        # `can_crop` found all alike, did not grow with the text.
        for layer in held:
            layer.crop(-num_tokens)
        return
    if not any(map(_is_static, layers)):
        cache.crop(-num_tokens)
        return
    # Up to 5.23 these have no method for it. What is behind the length is hidden, and written over by what comes next.
    for layer in layers:
        layer.cumulative_length.sub_(num_tokens)


def select_rows(cache: Any, rows: Tensor) -> Any:
    """`cache` with its row `rows[r]` in the place of row r, for as many rows as there are in `rows`; classes as for
    `reorder`."""
    if isinstance(cache, (tuple, list)):
        return type(cache)(tuple(tensor.index_select(0, rows.to(tensor.device)) for tensor in pair) for pair in cache)
    if _reorders_suffixes(cache):
        # Its rows may be fewer than before.
        cache.batch_select_indices(rows)
    else:
        cache.reorder_cache(rows)
    return cache


def cut(cache: Any, num_tokens: int) -> Any:
    """`cache` without its last `num_tokens` positions, or marked for `check_continues` where it cannot be cut. None for
    a tuple of anything but pairs, XLNet's memories for example, that takes no mark."""
    if num_tokens == 0:
        return cache
    if isinstance(cache, (tuple, list)):
        if not all(isinstance(pair, (tuple, list)) for pair in cache):
            return None
        return type(cache)(tuple(tensor[:, :, :-num_tokens] for tensor in pair) for pair in cache)
    if can_crop(cache, now=True):
        own = getattr(cache, "self_attention_cache", cache)
        crop(own, num_tokens)
    elif hasattr(cache, "__dict__"):
        cache.rows_of_different_texts = True
    return cache


def check_continues(name: str, cache: Any) -> None:
    """ValueError for a cache of a search that does not hold what belongs to the sequences it was returned with."""
    if getattr(cache, "rows_of_different_texts", False):
        kind = type(cache).__name__
        raise ValueError(
            f"`{name}` cannot be continued: beams of different lengths or a look at candidates left it, and this "
            f"{kind} cannot be cut to what belongs to the returned sequences; go on without a cache"
        )


def check_reorder(cache: Any) -> None:
    """Raises what `reorder` would raise, so that a loop can refuse a cache before the model runs.

    A cache that gets a part that nobody can reorder only while the model runs is refused by `reorder`.
    """
    _split(cache)


def reorder(cache: Any, source_rows: Tensor, shared: Tensor, generated: int) -> Any:
    """Makes every row r of `cache` a copy of row `source_rows[r]`, and returns the cache to go on with.

    Row r and its source descend from one prompt, so they differ at most in the last `generated` positions, and of these
    not in the first `shared[r]`. Only the rest is copied, in place, counted from the newest position that a layer
    stores: a sliding window may have dropped older ones. Cross-attention is the prompt's and stays. Layers that hold
    more than keys and values, recurrent states for example, gather all they have with their own `reorder_cache`.

    Arguments:
        cache: a cache of transformers, anything else with a method `reorder_cache(source_rows)`, or a tuple or list
            with a pair of key and value (rows, heads, positions, head_dim) per layer.
        source_rows, shared: (rows,) int64.

    Raises TypeError for anything else, and NotImplementedError naming the class whose `reorder_cache` leaves out a part
    of what it holds, as that of quantized layers does.
    """
    own = getattr(cache, "self_attention_cache", cache)
    if _reorders_suffixes(own):
        own.reorder_suffix(source_rows, shared, generated)
        return cache
    pairs, others = _split(cache)
    if generated == 0:
        return cache
    alike: dict[tuple[int, torch.device], list[Tensor]] = {}
    for keys, values, stored in pairs:
        alike.setdefault((stored, keys.device), []).extend((keys, values))
    for (stored, device), tensors in alike.items():
        start = (stored - generated + shared.to(device)).clamp(min=0)
        reorder_cache(tensors, source_rows.to(device), start, stored)
    for other in others:
        other.reorder_cache(source_rows)
    return cache


def _split(cache: Any) -> tuple[list[tuple[Tensor, Tensor, int]], list[Any]]:
    """(keys, values, positions stored) that suffixes can be copied in, and what reorders itself."""
    if isinstance(cache, (tuple, list)):
        return [_pair(f"cache[{i}]", layer) for i, layer in enumerate(cache)], []
    if hasattr(cache, "self_attention_cache"):
        return _split(cache.self_attention_cache)
    if not _has_plain_method(cache):
        return [], [cache]
    pairs, others = [], []
    for layer in cache.layers:
        kind = type(layer)
        if kind.__name__ not in _PLAIN_LAYERS.get(kind.__module__, ()):
            _has_plain_method(layer)
            others.append(layer)
        elif layer.is_initialized and layer.keys.numel() > 0:
            pairs.append((layer.keys, layer.values, min(int(layer.get_seq_length()), layer.keys.shape[2])))
    return pairs, others


def _pair(name: str, layer: Any) -> tuple[Tensor, Tensor, int]:
    if not isinstance(layer, (tuple, list)) or len(layer) != 2:
        raise TypeError(f"`{name}` must be a pair of key and value, got {type(layer).__name__}")
    for tensor in layer:
        if not isinstance(tensor, Tensor) or tensor.dim() != 4:
            shape = tuple(tensor.shape) if isinstance(tensor, Tensor) else type(tensor).__name__
            raise TypeError(f"`{name}` must hold tensors (rows, heads, positions, head_dim), got {shape}")
    return (*layer, layer[0].shape[2])


def _reorders_suffixes(cache: Any) -> bool:
    """Whether a cache is `pygen.graph.static_cache.StaticCache`, which knows all the verbs itself."""
    return hasattr(cache, "reorder_suffix")


def _length(layer: Any) -> int | None:
    """How many positions a layer holds whose keys are as many; None for others, and where it is empty."""
    keys: Any = getattr(layer, "keys", None)
    plain = isinstance(keys, Tensor) and keys.ndim == 4 and not _is_static(layer)
    return keys.shape[-2] if plain and not getattr(layer, "is_sliding", False) else None


def _is_not_full(layer: Any) -> bool:
    """Whether a layer with a window still holds all it has seen."""
    seen, window = getattr(layer, "cumulative_length", None), getattr(layer, "sliding_window", 0)
    return isinstance(seen, int) and seen < window


def _holds_more(layer: Any) -> bool:
    """Whether a layer holds recurrent states, or keys and values in a quantized form too."""
    return hasattr(layer, "update_recurrent_state") or hasattr(layer, "_dequantize")


def _is_static(layer: Any) -> bool:
    """Whether a layer is transformers' for full attention over buffers of fixed size, with its length in a tensor."""
    kind = type(layer)
    return (kind.__module__, kind.__name__) == ("transformers.cache_utils", "StaticLayer")


def _has_plain_method(holder: Any) -> bool:
    """Whether a cache or layer inherits its `reorder_cache`; an error if it has none, or holds more than that knows."""
    name, method = type(holder).__name__, getattr(holder, "reorder_cache", None)
    if method is None:
        raise TypeError(f"`cache` must have a method `reorder_cache`, got {name}")
    if getattr(method, "__qualname__", "") not in _PLAIN_METHODS:
        return False
    missed = [part for part, value in vars(holder).items() if part not in ("keys", "values") and _has_rows(value)]
    if hasattr(holder, "_dequantize"):
        missed = ["what is quantized"]
    if missed:
        raise NotImplementedError(f"`cache` cannot be reordered: `{name}.reorder_cache` misses {', '.join(missed)}")
    return True


def _has_rows(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.dim() > 1
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, (tuple, list)):
        return False
    return any(_has_rows(item) for item in value)
