"""Verbs over any key-value cache: what a loop needs done to it, whatever the cache's class."""

from __future__ import annotations

from typing import Any


def can_expand(cache: Any) -> bool:
    """Whether `expand` repeats everything the cache holds.

    Layers with recurrent state inherit a `batch_repeat_interleave` that knows keys and values only: they do not count.
    """
    layers = getattr(cache, "layers", None)
    if layers is None or not hasattr(cache, "batch_repeat_interleave"):
        return False
    kinds = [type(layer) for layer in layers]
    if not kinds:
        kinds = [getattr(cache, "layer_class_to_replicate", None) or object]
    return all(
        hasattr(kind, "batch_repeat_interleave") and not hasattr(kind, "update_recurrent_state") for kind in kinds
    )


def expand(cache: Any, num_copies: int) -> None:
    """Repeats every row of `cache` `num_copies` times, copies of a row side by side, in place."""
    cache.batch_repeat_interleave(num_copies)


def can_crop(cache: Any) -> bool:
    """Whether `crop` gives back the very state before the dropped tokens: full attention over keys and values only."""
    layers = getattr(cache, "layers", None) or ()
    return (
        len(layers) > 0
        and hasattr(cache, "crop")
        and not any(getattr(layer, "is_sliding", False) for layer in layers)
        and all(hasattr(layer, "crop") and not hasattr(layer, "update_recurrent_state") for layer in layers)
    )


def crop(cache: Any, num_tokens: int) -> None:
    """Drops the last `num_tokens` positions of `cache` in place.

    transformers 5.6.1 reads a positive number as the length to keep and later versions refuse it; a negative number
    means the same in all of them.
    """
    if num_tokens:
        cache.crop(-num_tokens)
