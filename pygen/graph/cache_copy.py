"""The cache of a captured call as the caller gets it."""

from __future__ import annotations

from typing import Any

from transformers import DynamicCache, EncoderDecoderCache

from pygen.graph.static_cache import EncoderDecoderStaticCache, StaticCache


def dynamic_copy(cache: StaticCache | EncoderDecoderStaticCache, config: Any) -> DynamicCache | EncoderDecoderCache:
    """The positions in use as a cache of the caller's own, as an eager call would return it."""
    if isinstance(cache, EncoderDecoderStaticCache):
        own, crossed = cache.self_attention_cache, cache.cross_attention_cache
        read = min(crossed.length, cache.encoder_length)
        # By its config, a cache of windows would drop what the decoder attends to of the encoder's output.
        of_crossed = None if any(own.is_sliding) else config
        return EncoderDecoderCache(_first(own, own.length, config), _first(crossed, read, of_crossed))
    return _first(cache, cache.length, config)


def _first(cache: StaticCache, length: int, config: Any) -> DynamicCache:
    copied = DynamicCache(config=config)
    for number, layer in enumerate(cache.layers):
        # A call that was cancelled before it began has written none.
        if length:
            copied.update(layer.keys[:, :, :length], layer.values[:, :, :length], number)
    return copied
