"""A key-value cache of fixed size that a captured step can write: its length lives on the device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import cache_utils

from pygen.graph.cache_refusals import CacheRefused, layer_kinds, refusal
from pygen.ops import _checks as checks
from pygen.ops.reorder_cache import reorder_cache, reorder_cache_unchecked

# transformers' types are not those of its static caches: lengths are tensors there, too.
_CacheLayer: Any = cache_utils.CacheLayerMixin
_Cache: Any = cache_utils.Cache
_EncoderDecoderCache: Any = cache_utils.EncoderDecoderCache


def bucket(length: int) -> int:
    """The capacity to allocate for `length` positions: 64, 128, 256, 384, 512, 768, 1024, 1536, ...

    Powers of two and, from 256 on, the middle between two of them; calls of similar length share a capture.
    """
    length, size = checks.count("length", length), 64
    while size < length:
        size *= 2
    middle = size // 4 * 3
    return middle if size >= 512 and length <= middle else size


@dataclass
class _Extent:
    """What the layers of a cache have in common. They do not know the cache, which would keep both from being freed."""

    rows: int
    capacity: int
    span: Tensor  # (2,) int64: positions that the rows of a prompt share, and positions in use
    device_length: Tensor  # () int64, the latter
    positions: Tensor  # (count,) int64, of the running forward
    rows_in_use: int = 0
    length: int = 0


class _Sized:
    """The numbers of an extent, read by their names."""

    extent: _Extent

    @property
    def rows(self) -> int:
        return self.extent.rows

    @property
    def capacity(self) -> int:
        return self.extent.capacity

    @property
    def rows_in_use(self) -> int:
        return self.extent.rows_in_use

    @property
    def length(self) -> int:
        return self.extent.length

    @property
    def device_length(self) -> Tensor:
        return self.extent.device_length


class StaticLayer(_CacheLayer):
    """Keys and values of one layer, (rows, heads, capacity, head_dim) each, allocated when the first ones come.

    `keys` and `values` are views of the rows in use. A sliding window is kept by the model's mask, not by dropping
    positions: where a window begins would otherwise be a number of the host in every mask.
    """

    is_compileable = True
    is_croppable = True

    def __init__(self, extent: _Extent, is_sliding: bool) -> None:
        super().__init__()
        self._extent = extent
        self._buffers: tuple[Tensor, ...] = ()
        self.is_sliding = is_sliding

    @property
    def max_cache_len(self) -> int:
        return self._extent.capacity

    @property
    def max_batch_size(self) -> int:
        return self._extent.rows

    @property
    def batch_size(self) -> int:
        return self._extent.rows_in_use

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        rows, capacity = self._extent.rows, self._extent.capacity
        self._buffers = tuple(
            states.new_zeros((rows, states.shape[1], capacity, states.shape[3]))
            for states in (key_states, value_states)
        )
        self.is_initialized = True
        self.show_rows()

    def show_rows(self) -> None:
        if self.is_initialized:
            self.keys, self.values = (buffer[: self._extent.rows_in_use] for buffer in self._buffers)

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Writes at the positions of the running forward. A prompt from the start attends to itself alone."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        positions = self._extent.positions
        self.keys.index_copy_(2, positions, key_states)
        self.values.index_copy_(2, positions, value_states)
        return (key_states, value_states) if self._extent.length == 0 else (self.keys, self.values)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return (query_length if self._extent.length == 0 else self._extent.capacity), 0

    def get_seq_length(self) -> int | Tensor:
        return self._extent.device_length if self._extent.length else 0

    def get_max_length(self) -> int:
        return self._extent.capacity

    get_max_cache_shape = get_max_length

    def reset(self) -> None:
        for buffer in self._buffers:
            buffer.zero_()


class StaticCache(_Sized, _Cache):
    """transformers' cache protocol over buffers that never move, for layers of full or sliding-window attention.

    The prompt is read once, by an ordinary forward with one row per prompt; `expand` then makes the copies that beams
    or returned sequences need. From there on a forward writes at `device_length`, adds to it, and attends to all
    `capacity` positions under the model's own mask, which hides those not written yet. None of that depends on a number
    of the host, so a captured forward writes each replay one position further.

    Attributes:
        rows: rows allocated; the first `rows_in_use` of them hold text.
        capacity: positions allocated.
        length: positions in use, as far as the host knows: every forward that Python runs adds to it.
        device_length: positions in use, () int64 on the device: what a forward goes by.

    `get_seq_length()` is `device_length`, or 0 while the cache is empty. What was never written is zero.
    """

    def __init__(self, kinds: list[str], *, rows: int, capacity: int, device: torch.device | str = "cpu") -> None:
        """`kinds`: "full_attention" or "sliding_attention" for every layer that has keys and values."""
        for name, value in (("rows", rows), ("capacity", capacity)):
            if checks.count(name, value) == 0:
                raise ValueError(f"`{name}` must be >= 1, got 0")
        span = torch.zeros(2, dtype=torch.int64, device=device)
        self.extent = _Extent(rows, capacity, span, span[1], span[1:])
        self._next_layer = 0
        super().__init__(layers=[StaticLayer(self.extent, kind == "sliding_attention") for kind in kinds])

    @classmethod
    def for_model(
        cls, model: Any, *, rows: int, capacity: int, encoder_positions: int | None = None
    ) -> StaticCache | EncoderDecoderStaticCache:
        """A cache for `model`, a transformers model: a pair of them for an encoder-decoder.

        encoder_positions: of the encoder's output; None leaves them to the first that comes.

        Nothing is allocated until keys and values come. Raises CacheRefused with what `refusal(model)` says.
        """
        reason = refusal(model)
        if reason is not None:
            raise CacheRefused(f"a static cache cannot be used: {reason}")
        kinds = layer_kinds(model.config)
        cache = cls(kinds, rows=rows, capacity=capacity, device=model.device)
        if not model.config.is_encoder_decoder:
            return cache
        crossed = CrossAttentionCache(len(kinds), rows=rows, positions=encoder_positions, device=model.device)
        return EncoderDecoderStaticCache(cache, crossed)

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Writes a layer's states (rows, heads, count, head_dim) and returns those to attend to.

        The layers of a forward come in order: the first finds the positions, the last moves the length on. A forward
        that ends before its last layer has not happened. Raises ValueError, before anything is written, where rows or
        positions are not there.
        """
        if layer_idx == 0:
            self._begin(key_states.shape[0], key_states.shape[2])
        elif layer_idx != self._next_layer:
            raise ValueError(f"`layer_idx` must be 0 or one more than before, got {layer_idx}")
        states: tuple[Tensor, Tensor] = self.layers[layer_idx].update(key_states, value_states)
        self._next_layer = layer_idx + 1
        if self._next_layer == len(self.layers):
            self.device_length.add_(key_states.shape[2])
            self.extent.length += key_states.shape[2]
            self._next_layer = 0
        return states

    def _begin(self, rows: int, count: int) -> None:
        if self.length == 0:
            if rows > self.rows:
                raise ValueError(f"the cache has {self.rows} rows, the call needs {rows}")
        elif rows != self.rows_in_use:
            raise ValueError(f"the cache holds {self.rows_in_use} rows, got keys of {rows}")
        self._check_room(count)
        if rows != self.rows_in_use:
            self.use_rows(rows)
        first = self.device_length.view(1)
        self.extent.positions = first if count == 1 else torch.arange(count, device=first.device) + first

    def _check_room(self, count: int) -> None:
        if self.length + count > self.capacity:
            raise ValueError(
                f"the cache has room for {self.capacity} positions, {self.length} are in use, got {count} more"
            )

    def use_rows(self, rows: int) -> None:
        """Makes the first `rows` rows those in use."""
        self.extent.rows_in_use = rows
        for layer in self.layers:
            layer.show_rows()

    def set_length(self, length: int) -> None:
        """Makes the first `length` positions those in use, on the host and, without waiting, on the device.

        What was written behind them is overwritten later. After a capture, whose forward ran in Python only, this puts
        the host right.
        """
        checks.count_up_to("length", length, self.capacity)
        self.extent.length = length
        self.device_length.fill_(length)

    def crop(self, length: int) -> None:
        """Keeps the first `length` positions, or, below 0, drops that many of the last; 0 does nothing.

        transformers 5.6.1 keeps nothing at 0 and later versions everything. Sliding windows are cropped as well.
        """
        if length > 0:
            self.set_length(min(length, self.length))
        elif length < -self.length:
            raise ValueError(f"`length` must be at least -{self.length}, the positions in use, got {length}")
        elif length < 0:
            self.set_length(self.length + length)

    def reset(self) -> None:
        """Empties the cache for another call; the buffers stay where they are, and are zero."""
        super().reset()
        self.extent.rows_in_use = 0
        self.set_length(0)

    def expand(self, num_copies: int) -> None:
        """Makes every row in use `num_copies` rows, side by side, within the rows allocated."""
        copied = self.rows_in_use
        rows = copied * checks.count("num_copies", num_copies)
        if rows == 0 < copied or rows > self.rows:
            raise ValueError(
                f"`num_copies` must be in [1, {self.rows // max(copied, 1)}] for {copied} of {self.rows} rows, "
                f"got {num_copies}"
            )
        self.use_rows(rows)
        self.reorder_cache(torch.arange(rows, device=self.device_length.device) // num_copies)

    batch_repeat_interleave = expand

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keeps the rows `indices`, in their order, (rows,) int64 or a mask of the rows in use."""
        sources = torch.arange(self.rows_in_use, device=self.device_length.device)[indices]
        if len(sources) > self.rows:
            raise ValueError(f"the cache has {self.rows} rows, got {len(sources)} indices")
        kept = [tensor[:, :, : self.length].index_select(0, sources) for tensor in self._tensors()]
        self.use_rows(len(sources))
        for tensor, rows in zip(self._tensors(), kept, strict=True):
            tensor[:, :, : self.length].copy_(rows)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Makes every row r in use a copy of row `beam_idx[r]`, in place."""
        if self.length and self.rows_in_use:
            reorder_cache(self._tensors(), beam_idx.to(self.device_length.device), 0, self.length)

    def share_prefix(self) -> None:
        """Tells that the rows of a prompt have all positions in use in common, and may differ in later ones."""
        self.extent.span[0].fill_(self.length)

    def reorder_suffix(self, source_rows: Tensor, shared: Tensor, generated: int | None) -> None:
        """Makes every row r a copy of row `source_rows[r]`, of which it already has all but the last positions.

            first = length - generated + shared[r]
            row r takes over positions [first, length) of row source_rows[r]

        Arguments:
            source_rows, shared: (rows,) int64.
            generated: the newest positions, in which rows of one prompt may differ. None: all since `share_prefix`,
                by the lengths that are on the device, so that the call can be captured; nothing is checked.
        """
        if generated is None:
            reorder_cache_unchecked(self._tensors(), source_rows, shared, self.capacity, self.extent.span)
        elif self.length and generated:
            first = (self.length - generated + shared).clamp(min=0)
            reorder_cache(self._tensors(), source_rows, first, self.length)

    def _tensors(self) -> list[Tensor]:
        return [tensor for layer in self.layers if layer.is_initialized for tensor in (layer.keys, layer.values)]


class CrossAttentionCache(StaticCache):
    """What a decoder's layers made of the encoder's output: written once per call, and read whole.

    Where `positions` is None the first output decides the length. After `reset` another of the same length is written
    into the same buffers.
    """

    def __init__(
        self, num_layers: int, *, rows: int, positions: int | None = None, device: torch.device | str = "cpu"
    ) -> None:
        self.positions = positions
        capacity = 1 if positions is None else positions
        super().__init__(["full_attention"] * num_layers, rows=rows, capacity=capacity, device=device)

    def _begin(self, rows: int, count: int) -> None:
        if self.positions is None and not self.layers[0].is_initialized:
            self.extent.capacity = count
        elif count != self.capacity:
            raise ValueError(f"the cache is for {self.capacity} positions of an encoder, got {count}")
        super()._begin(rows, count)


class EncoderDecoderStaticCache(_Sized, _EncoderDecoderCache):
    """A `StaticCache` for the decoder's attention to itself, and a `CrossAttentionCache`.

    Lengths, `crop`, `share_prefix` and `reorder_suffix` concern the first alone: beams of a prompt share the encoder's
    output.

    Attributes:
        encoder_positions: what the second is for, or None; see there.
        encoder_length: those of the running call that are not padding.
    """

    self_attention_cache: StaticCache
    cross_attention_cache: CrossAttentionCache
    encoder_length = 0

    @property
    def encoder_positions(self) -> int | None:
        return self.cross_attention_cache.positions

    @property
    def extent(self) -> _Extent:  # type: ignore[override]
        return self.self_attention_cache.extent

    def set_length(self, length: int) -> None:
        self.self_attention_cache.set_length(length)

    def crop(self, length: int) -> None:
        self.self_attention_cache.crop(length)

    def expand(self, num_copies: int) -> None:
        self.self_attention_cache.expand(num_copies)
        self.cross_attention_cache.expand(num_copies)

    batch_repeat_interleave = expand

    def batch_select_indices(self, indices: Tensor) -> None:
        self.self_attention_cache.batch_select_indices(indices)
        self.cross_attention_cache.batch_select_indices(indices)

    def share_prefix(self) -> None:
        self.self_attention_cache.share_prefix()

    def reorder_suffix(self, source_rows: Tensor, shared: Tensor, generated: int | None) -> None:
        self.self_attention_cache.reorder_suffix(source_rows, shared, generated)
