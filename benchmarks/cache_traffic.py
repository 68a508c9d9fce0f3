"""Counts the bytes that a beam search moves between the rows of its cache, call by call."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from unittest import mock

import torch
from transformers import DynamicCache

from benchmarks.bench_reorder_cache import bytes_moved
from pygen.models import cache as cache_verbs
from pygen.ops import reorder_cache


class Count:
    bytes = 0


@contextlib.contextmanager
def counted() -> Iterator[Count]:
    """Counts reads and writes of both libraries' caches while the block runs."""
    count = Count()
    gather: Callable[..., None] = DynamicCache.reorder_cache
    copy = reorder_cache

    # `wraps` keeps the name, from which pygen recognizes the method.
    @functools.wraps(gather)
    def count_gather(cache: DynamicCache, beam_idx: torch.Tensor) -> None:
        layers: Sequence[Any] = cache.layers
        for layer in layers:
            count.bytes += 2 * (layer.keys.nbytes + layer.values.nbytes)
        gather(cache, beam_idx)

    def count_copy(tensors: list[torch.Tensor], beam_idx: torch.Tensor, start: torch.Tensor, length: int) -> None:
        for row in range(len(beam_idx)):
            own = torch.arange(len(beam_idx))
            own[row] = beam_idx[row]
            count.bytes += bytes_moved(tensors, own, int(start[row]), length)
        copy(tensors, beam_idx, start, length)

    with (
        mock.patch.object(DynamicCache, "reorder_cache", count_gather),
        mock.patch.object(cache_verbs, "reorder_cache", count_copy),
    ):
        yield count
