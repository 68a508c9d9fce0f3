"""Operations on key-value caches of any class: expand, crop, select and reorder rows."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor

from pygen.config.config import GenerationMode
from pygen.models.protocols import Cache
from pygen.models.rows import leaves
from pygen.ops.reorder_cache import reorder_cache

AnyCache = TypeVar("AnyCache")

# The searches that reorder the rows of a cache, and those that crop it.
REORDERING_MODES = (
    GenerationMode.CONTRASTIVE_SEARCH,
    GenerationMode.BEAM_SEARCH,
    GenerationMode.BEAM_SAMPLE,
    GenerationMode.CONSTRAINED_BEAM_SEARCH,
    GenerationMode.GROUP_BEAM_SEARCH,
)
CROPPING_MODES = (GenerationMode.ASSISTED_GENERATION, GenerationMode.CONTRASTIVE_SEARCH)

# Layers that store keys and values only, in the order of the positions.
_PLAIN_LAYERS = {
    "pygen.models.growing_layer": ("GrowingLayer",),
    "transformers.cache_utils": (
        "DynamicLayer",
        "DynamicSlidingWindowLayer",
        "StaticLayer",
        "StaticSlidingWindowLayer",
    ),
}
# Methods of transformers that handle layers, or keys and values, and ignore what a subclass adds.
_PLAIN_METHODS = ("Cache.reorder_cache", "CacheLayerMixin.reorder_cache")


def num_positions(cache: object) -> int | None:
    """The number of positions that `cache` has seen; None without a count, with recurrent states only for example."""
    layers, count = getattr(cache, "layers", None), getattr(cache, "get_seq_length", None)
    counts = any(hasattr(layer, "get_seq_length") for layer in layers) if layers else count is not None
    return int(count()) if counts and count is not None else None


def can_expand(cache: object) -> bool:
    """Whether `expand` repeats all contents of the cache.

    It is False for layers that store more than keys and values, because they inherit a `batch_repeat_interleave` that
    repeats only these.
    """
    if hasattr(cache, "cross_attention_cache"):
        return can_expand(_decoders(cache)) and can_expand(cache.cross_attention_cache)
    if _reorders_suffixes(cache):
        return True
    layers = getattr(cache, "layers", None)
    if layers is None or not hasattr(cache, "batch_repeat_interleave"):
        return False
    kinds = [type(layer) for layer in layers]
    if not kinds:
        kinds = [getattr(cache, "layer_class_to_replicate", None) or object]
    return all(hasattr(kind, "batch_repeat_interleave") and not _stores_more(kind) for kind in kinds)


def expand(cache: Cache, num_copies: int) -> None:
    """Repeats every row of `cache` `num_copies` times in place; the copies of a row are adjacent."""
    cache.batch_repeat_interleave(num_copies)


def can_crop(cache: object, *, now: bool = False) -> bool:
    """Whether `crop` restores the exact state before the dropped tokens: full attention over keys and values only.

    now: also True for windows that aren't full yet.
    """
    if hasattr(cache, "cross_attention_cache"):
        return can_crop(_decoders(cache), now=now)
    if _reorders_suffixes(cache):
        return True
    layers = getattr(cache, "layers", None) or ()
    return (
        len(layers) > 0
        and hasattr(cache, "crop")
        and not any(_has_rows(value) for name, value in vars(cache).items() if name != "layers")
        and not any(getattr(layer, "is_sliding", False) and not (now and _is_not_full(layer)) for layer in layers)
        and all((hasattr(layer, "crop") or _is_static(layer)) and not _stores_more(layer) for layer in layers)
    )


def crop(cache: Cache, num_tokens: int) -> None:
    """Drops the last `num_tokens` positions of `cache` in place.

    It passes a negative number to transformers, which means the same in all releases. A positive one is the length to
    keep in 5.6.1, and an error later.
    """
    if num_tokens == 0:
        return
    layers = layers_of(cache)
    longest = max((_length(layer) or 0 for layer in layers), default=0)
    grown = [layer for layer in layers if getattr(layer, "is_initialized", True) and _length(layer) in (None, longest)]
    if len(grown) < len(layers):
        # Some models leave layers empty, and some the whole cache. `can_crop` found layers of equal length, so a layer
        # that is shorter now did not grow with the text.
        for layer in grown:
            layer.crop(-num_tokens)
        return
    if not any(map(_is_static, layers)):
        cache.crop(-num_tokens)
        return
    # Up to 5.23 static layers cannot crop. The mask hides positions after the length, and forwards overwrite them.
    for layer in layers:
        layer.cumulative_length.sub_(num_tokens)


def select_rows(cache: Any, rows: Tensor) -> Any:
    """`cache` with len(rows) rows, of which row r is the previous row `rows[r]`; for the classes of `reorder`."""
    if isinstance(cache, (tuple, list)):
        return type(cache)(tuple(tensor.index_select(0, rows.to(tensor.device)) for tensor in pair) for pair in cache)
    if _reorders_suffixes(cache):
        # There may be fewer rows than before.
        cache.batch_select_indices(rows)
    else:
        cache.reorder_cache(rows)
    return cache


def cut(cache: Any, num_tokens: int) -> Any:
    """`cache` without its last `num_tokens` positions, or with a mark for `check_continues` if that is impossible.

    None for a tuple of anything but pairs, XLNet's memories for example, which cannot have a mark.
    """
    if num_tokens == 0:
        return cache
    if isinstance(cache, (tuple, list)):
        if not all(isinstance(pair, (tuple, list)) for pair in cache):
            return None
        return type(cache)(tuple(tensor[:, :, :-num_tokens] for tensor in pair) for pair in cache)
    if can_crop(cache, now=True):
        crop(_decoders(cache), num_tokens)
    elif hasattr(cache, "__dict__"):
        cache.rows_of_different_texts = True
    return cache


def check_continues(name: str, cache: object) -> None:
    """ValueError for a cache that `cut` has marked: it does not match the sequences returned with it."""
    if getattr(cache, "rows_of_different_texts", False):
        kind = type(cache).__name__
        raise ValueError(
            f"`{name}` cannot be continued: beams of different lengths or contrastive candidates used it, and this "
            f"{kind} cannot be cut to the returned sequences; continue without a cache"
        )


def check_reorder(cache: object) -> None:
    """Raises the errors of `reorder`, so that a loop can refuse a cache early.

    `reorder` still refuses a cache to which the model adds such a part later.
    """
    _split(cache)


def reorder(cache: AnyCache, source_rows: Tensor, shared: Tensor, generated: int) -> AnyCache:
    """Makes every row r of `cache` a copy of row `source_rows[r]`, in place, and returns the cache.

    Row r and its source have the same prompt, so they differ in the last `generated` positions only, and agree in the
    first `shared[r]` of these. The function copies the other ones. It counts them from the newest position of a layer,
    because a sliding window may have dropped older ones. Cross-attention belongs to the prompt and does not move.
    Layers that store more than keys and values, recurrent states for example, gather everything with their own
    `reorder_cache`.

    Arguments:
        cache: a cache of transformers, anything else with a method `reorder_cache(source_rows)`, or a tuple or list
            with a pair of key and value (rows, heads, positions, head_dim) per layer.
        source_rows, shared: (rows,) int64.

    Raises TypeError for anything else, and NotImplementedError with the name of a class whose `reorder_cache` ignores a
    part of its contents, as that of quantized layers does.
    """
    own = _decoders(cache)
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


def _decoders(cache: object) -> Any:
    """The decoder's cache of a pair of caches; any other cache itself."""
    return getattr(cache, "self_attention_cache", cache)


def layers_of(cache: object) -> Any:
    """The layers of a cache, or of the decoder's cache of a pair, in their own list; empty for other objects."""
    return getattr(_decoders(cache), "layers", None) or ()


def _split(cache: object) -> tuple[list[tuple[Tensor, Tensor, int]], list[Cache]]:
    """The (keys, values, number of stored positions) of plain layers, and the parts that reorder themselves."""
    if isinstance(cache, (tuple, list)):
        return [_pair(f"cache[{i}]", layer) for i, layer in enumerate(cache)], []
    if hasattr(cache, "self_attention_cache"):
        return _split(cache.self_attention_cache)
    if not _has_plain_method(cache):
        return [], [_decoders(cache)]
    pairs, others = [], []
    for layer in _decoders(cache).layers:
        kind = type(layer)
        if kind.__name__ not in _PLAIN_LAYERS.get(kind.__module__, ()):
            _has_plain_method(layer)
            others.append(layer)
        elif layer.is_initialized and layer.keys.numel() > 0:
            pairs.append((layer.keys, layer.values, min(int(layer.get_seq_length()), layer.keys.shape[2])))
    return pairs, others


def _pair(name: str, layer: object) -> tuple[Tensor, Tensor, int]:
    if not isinstance(layer, (tuple, list)) or len(layer) != 2:
        raise TypeError(f"`{name}` must be a pair of key and value, got {type(layer).__name__}")
    for tensor in layer:
        if not isinstance(tensor, Tensor) or tensor.dim() != 4:
            shape = tuple(tensor.shape) if isinstance(tensor, Tensor) else type(tensor).__name__
            raise TypeError(f"`{name}` must hold tensors (rows, heads, positions, head_dim), got {shape}")
    keys, values = layer
    return keys, values, keys.shape[2]


def _reorders_suffixes(cache: object) -> bool:
    """Whether a cache is `pygen.graph.static_cache.StaticCache`, which has all these operations itself."""
    return hasattr(cache, "reorder_suffix")


def _length(layer: object) -> int | None:
    """The number of positions in a layer that stores all of them; None for other layers and for empty ones."""
    keys: Any = getattr(layer, "keys", None)
    plain = isinstance(keys, Tensor) and keys.ndim == 4 and not _is_static(layer)
    return keys.shape[-2] if plain and not getattr(layer, "is_sliding", False) else None


def _is_not_full(layer: object) -> bool:
    """Whether a layer with a window has not dropped a position yet."""
    seen, window = getattr(layer, "cumulative_length", None), getattr(layer, "sliding_window", 0)
    return isinstance(seen, int) and seen < window


def _stores_more(layer: object) -> bool:
    """Whether a layer stores recurrent states, or quantized keys and values."""
    return hasattr(layer, "update_recurrent_state") or hasattr(layer, "_dequantize")


def _is_static(layer: object) -> bool:
    """Whether a layer is transformers' `StaticLayer`: full attention over fixed buffers, its length in a tensor."""
    kind = type(layer)
    return (kind.__module__, kind.__name__) == ("transformers.cache_utils", "StaticLayer")


def _has_plain_method(holder: object) -> bool:
    """Whether a cache or layer inherits its `reorder_cache` from transformers.

    Errors: TypeError without that method, NotImplementedError if the method ignores a part of the contents.
    """
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


def _has_rows(value: object) -> bool:
    return any(tensor.dim() > 1 for tensor in leaves(value))
