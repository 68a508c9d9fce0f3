"""A key-value cache whose rows end at the same column, and in which rows can be replaced."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import cache_utils

# transformers' types are not those of its own caches: lengths are tensors in some, numbers in others.
_CacheLayer: Any = cache_utils.CacheLayerMixin
_Cache: Any = cache_utils.Cache


@dataclass
class _Window:
    """The columns that forwards attend to; shared by all layers, which do not know the cache."""

    rows: int
    capacity: int
    rows_in_use: int
    begin: int = 0
    end: int = 0


class WindowLayer(_CacheLayer):
    """Keys and values of one layer, (rows, heads, capacity, head_dim) each, allocated when the first ones come.

    The layer keeps all positions of a sliding window too: the model's mask hides the old ones.
    """

    is_compileable = False

    def __init__(self, window: _Window, is_sliding: bool) -> None:
        super().__init__()
        self._window = window
        self.is_sliding = is_sliding
        self.buffers: tuple[Tensor, ...] = ()

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        rows, capacity = self._window.rows, self._window.capacity
        # Zeros, because a NaN behind the mask would still reach the sum over values.
        self.buffers = tuple(
            states.new_zeros((rows, states.shape[1], capacity, states.shape[3]))
            for states in (key_states, value_states)
        )
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        window, last = self._window, self._window.end + key_states.shape[2]
        for buffer, states in zip(self.buffers, (key_states, value_states), strict=True):
            buffer[: window.rows_in_use, :, window.end : last] = states
        keys, values = (buffer[: window.rows_in_use, :, window.begin : last] for buffer in self.buffers)
        return keys, values

    def get_seq_length(self) -> int:
        return self._window.end - self._window.begin

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0

    def get_max_length(self) -> int:
        return -1

    get_max_cache_shape = get_max_length

    def reset(self) -> None:
        for buffer in self.buffers:
            buffer.zero_()

    def resize(self, capacity: int, begin: int, end: int) -> None:
        """Replaces the buffers by ones of `capacity` columns, the old columns [begin, end) first."""
        old = self.buffers
        self.buffers = tuple(b.new_zeros((b.shape[0], b.shape[1], capacity, b.shape[3])) for b in old)
        for buffer, source in zip(self.buffers, old, strict=True):
            buffer[:, :, : end - begin] = source[:, :, begin:end]


class WindowCache(_Cache):
    """transformers' cache protocol over columns that all rows share.

        columns       0 ..  begin ......................  end .. capacity
        row of 5                             k k k k k |
        row of 3                                 k k k |      the next forward writes all rows at `end`

    A row's positions are the last columns before `end`, so the batch looks to the model like one of prompts padded on
    the left, of which `begin` cuts the columns that no row needs. A new row is copied to the columns before `end`; no
    other row moves. Once `end` reaches the capacity, the window moves back to the first columns, or the buffers grow.

    Attributes: rows: allocated. rows_in_use: those of the next forward, the first ones. begin, end: see above.
    """

    def __init__(self, kinds: Sequence[str], *, rows: int, capacity: int) -> None:
        """kinds: "full_attention" or "sliding_attention" for every layer that has keys and values."""
        self.window = _Window(rows, capacity, rows_in_use=rows)
        self._next_layer = 0
        super().__init__(layers=[WindowLayer(self.window, kind == "sliding_attention") for kind in kinds])

    @property
    def begin(self) -> int:
        return self.window.begin

    @property
    def end(self) -> int:
        return self.window.end

    @property
    def length(self) -> int:
        """Columns of the window."""
        return self.window.end - self.window.begin

    @property
    def capacity(self) -> int:
        return self.window.capacity

    @property
    def rows(self) -> int:
        return self.window.rows

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Writes a layer's states (rows_in_use, heads, count, head_dim) at `end`; returns those of the window.

        The layers of a forward come in order, and the last one moves `end` on: a forward that fails before has changed
        nothing that a later one reads.
        """
        if layer_idx == 0:
            self._next_layer = 0
        elif layer_idx != self._next_layer:
            raise ValueError(f"`layer_idx` must be 0 or one more than before, got {layer_idx}")
        count = key_states.shape[2]
        if self.end + count > self.capacity:
            raise ValueError(f"the cache has {self.capacity} columns, {self.end} are in use, got {count} more")
        states: tuple[Tensor, Tensor] = self.layers[layer_idx].update(key_states, value_states)
        self._next_layer = layer_idx + 1
        if self._next_layer == len(self.layers):
            self.window.end += count
        return states

    def use_rows(self, count: int) -> None:
        """The next forwards are over the first `count` rows."""
        self.window.rows_in_use = count

    def fit(self, length: int, more: int) -> None:
        """Makes the window the `length` columns before `end`, with at least `more` free columns after it.

        length: of the longest row that stays or comes.
        """
        window = self.window
        window.begin = max(window.end - length, 0)
        if window.end >= length and window.end + more <= window.capacity:
            return
        if length + more + max(16, length // 8) > window.capacity:
            # With few columns to spare, all rows would move every few steps.
            capacity = length + more + max(64, length // 4)
            for layer in self.layers:
                if layer.is_initialized:
                    layer.resize(capacity, window.begin, window.end)
            window.begin, window.end, window.capacity = 0, self.length, capacity
        self._move_to(length)

    def _move_to(self, end: int) -> None:
        window = self.window
        begin = end - self.length
        if end == window.end:
            return
        for buffer in self._buffers():
            # A copy of the source, because the ranges may overlap.
            buffer[:, :, begin:end] = buffer[:, :, window.begin : window.end].clone()
            buffer[:, :, :begin] = 0
        window.begin, window.end = begin, end

    def put_row(self, row: int, source: WindowCache, source_row: int, length: int) -> None:
        """Copies the last `length` columns of a row of `source` to row `row`."""
        for layer, other in zip(self.layers, source.layers, strict=True):
            if not other.is_initialized:
                continue
            if not layer.is_initialized:
                layer.lazy_initialization(*other.buffers)
            for buffer, states in zip(layer.buffers, other.buffers, strict=True):
                buffer[row, :, self.end - length : self.end] = states[source_row, :, source.end - length : source.end]

    def move_row(self, source: int, target: int) -> None:
        for buffer in self._buffers():
            buffer[target, :, self.begin : self.end] = buffer[source, :, self.begin : self.end]

    def clear_row(self, row: int) -> None:
        """Zeros a row that may hold NaN, which would reach a later row there through a mask."""
        for buffer in self._buffers():
            buffer[row] = 0

    def is_finite(self) -> bool:
        """Whether no key or value is NaN or infinite."""
        sums = [buffer.sum(dtype=torch.float32) for buffer in self._buffers()]
        return not sums or bool(torch.stack([each.to(sums[0].device) for each in sums]).isfinite().all())

    def reset(self) -> None:
        super().reset()
        self.window.begin = self.window.end = 0

    def _buffers(self) -> list[Tensor]:
        return [buffer for layer in self.layers for buffer in layer.buffers]


def copy_of_row(source: WindowCache, row: int, length: int, *, capacity: int) -> WindowCache:
    """A cache of one row with the first `length` positions of a row of `source`, which begins at column 0."""
    kinds = ["sliding_attention" if layer.is_sliding else "full_attention" for layer in source.layers]
    cache = WindowCache(kinds, rows=1, capacity=capacity)
    for layer, other in zip(cache.layers, source.layers, strict=True):
        if other.is_initialized:
            layer.lazy_initialization(*other.buffers)
            for buffer, states in zip(layer.buffers, other.buffers, strict=True):
                buffer[0, :, :length] = states[row, :, :length]
    cache.window.end = length
    return cache


def masks(lengths: Sequence[int], window: int, device: torch.device) -> Tensor:
    """(rows, window) int64: 1 at the last lengths[r] columns of row r."""
    first = torch.tensor([window - length for length in lengths], device=device)
    return (torch.arange(window, device=device) >= first[:, None]).long()
