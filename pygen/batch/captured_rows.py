"""The rows of a batch on a GPU: one captured forward for all of them, replayed for every token."""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from pygen.backends import BackendError
from pygen.batch.forward import BatchForward
from pygen.batch.row import Row
from pygen.batch.window_cache import WindowCache
from pygen.graph.cuda_graph import CAPTURES, Capture, Launches
from pygen.graph.static_cache import StaticCache, bucket
from pygen.notices import log

logger = logging.getLogger(__name__)


class CapturedRows:
    """Keeps every row in a slot, since a capture bakes in addresses and the number of rows.

        columns   0 ................ end ...... capacity      the forward writes all rows at `end`, and adds 1 to it
        row             0 0 1 1 1 1 | 1 1 1 1 1 1             its mask; the model hides columns that are not written

    Once `end` reaches the capacity, all rows move back to the first columns. A row that is longer than the capacity
    makes a larger cache, and another capture.

    logits: (rows, vocab_size), where the last forward left them.
    must_capture: a forward that cannot be captured is a BackendError; else it is launched, with a warning.
    """

    looks_late = True

    def __init__(
        self, forward: BatchForward, num_rows: int, *, max_length: int | None = None, must_capture: bool
    ) -> None:
        """max_length: of any row to come; None makes room as rows need it."""
        self._forward, self._must_capture = forward, must_capture
        self._rows: list[Row | None] = [None] * num_rows
        device = forward.device
        self._token_ids = torch.zeros((num_rows, 1), dtype=torch.int64, device=device)
        self._positions = torch.zeros((num_rows, 1), dtype=torch.int64, device=device)
        # 1 where a row is, so that positions of empty slots do not grow beyond those that the model has.
        self._is_used = torch.zeros((num_rows, 1), dtype=torch.int64, device=device)
        self.logits = torch.empty(0, device=device)
        self._allocate(_capacity_for(max_length or 1))

    @property
    def present(self) -> list[Row]:
        return [row for row in self._rows if row is not None]

    def add(self, row: Row, source: WindowCache, source_row: int) -> None:
        slot = self._rows.index(None)
        self._rows[slot] = row
        self._fit(row.request.longest)
        end, length = self._cache.length, row.length
        for layer, other in zip(self._cache.layers, source.layers, strict=True):
            if not other.is_initialized:
                continue
            if not layer.is_initialized:
                layer.lazy_initialization(*other.buffers)
            for buffer, states in zip((layer.keys, layer.values), other.buffers, strict=True):
                buffer[slot, :, end - length : end] = states[source_row, :, source.end - length : source.end]
        self._mask[slot] = 1
        self._mask[slot, : end - length] = 0
        self._positions[slot] = length
        self._is_used[slot] = 1
        self._token_ids[slot] = row.last_token

    def forward(self) -> tuple[list[Row], Tensor]:
        self._fit(0)
        if self._capture is None:
            self._record()
        assert self._capture is not None
        length = self._cache.length
        self._capture.replay()
        # A replay runs no Python that would count.
        self._cache.extent.length = length + 1
        rows = self.present
        for row in rows:
            row.length += 1
        if len(rows) == len(self._rows):
            return rows, self.logits
        return rows, self.logits[self._slots(rows)]

    def feed(self, rows: list[Row], token_ids: Tensor) -> None:
        if len(rows) == len(self._rows):
            self._token_ids[:, 0] = token_ids
        else:
            self._token_ids[self._slots(rows), 0] = token_ids

    def remove(self, row: Row) -> None:
        slot = self._rows.index(row)
        self._is_used[slot] = 0
        self._positions[slot] = 0
        if row.is_tainted:
            # Invalid keys or values would reach a later row there through its mask.
            for buffer in self._buffers():
                buffer[slot] = 0
        self._rows[slot] = None

    def take_all(self) -> list[Row]:
        rows = self.present
        self._rows = [None] * len(self._rows)
        self._allocate(self._cache.capacity)
        return rows

    def _slots(self, rows: list[Row]) -> Tensor:
        return torch.tensor([self._rows.index(row) for row in rows], device=self._forward.device)

    def _allocate(self, capacity: int) -> None:
        num_rows, device = len(self._rows), self._forward.device
        self._cache = StaticCache(self._forward.kinds, rows=num_rows, capacity=capacity, device=device)
        self._mask = torch.ones((num_rows, capacity), dtype=torch.int64, device=device)
        self._cache.use_rows(num_rows)
        # Behind the columns of the longest row to come; the first column is nobody's.
        self._cache.set_length(1)
        self._capture: Capture | None = None

    def _fit(self, longest: int) -> None:
        """Makes room for one more column, and, before a row comes, for one of `longest` positions."""
        lengths = [row.length for row in self.present]
        longest = max(longest, *(row.request.longest for row in self.present), 1)
        cache = self._cache
        if longest + 1 > cache.capacity:
            self._replace(_capacity_for(longest))
        elif cache.length + 1 > cache.capacity or cache.length < max(lengths):
            self._move(max(lengths))

    def _replace(self, capacity: int) -> None:
        old, mask, length = self._cache, self._mask, self._cache.length
        self._allocate(capacity)
        for layer, source in zip(self._cache.layers, old.layers, strict=True):
            if source.is_initialized:
                layer.lazy_initialization(source.keys, source.values)
                for buffer, states in zip((layer.keys, layer.values), (source.keys, source.values), strict=True):
                    buffer[:, :, :length] = states[:, :, :length]
        self._mask[:, : mask.shape[1]] = mask
        self._cache.set_length(length)
        self._move(max(row.length for row in self.present))

    def _move(self, end: int) -> None:
        """Moves the last `end` columns in use to the first, where there are as many; else all of them to the right."""
        old_end = self._cache.length
        width = min(end, old_end)
        for tensor in self._buffers():
            tensor[:, :, end - width : end] = tensor[:, :, old_end - width : old_end].clone()
        self._mask[:, end - width : end] = self._mask[:, old_end - width : old_end].clone()
        self._mask[:, : end - width] = 0
        self._mask[:, end:] = 1
        self._cache.set_length(end)

    def _buffers(self) -> list[Tensor]:
        return [tensor for layer in self._cache.layers if layer.is_initialized for tensor in (layer.keys, layer.values)]

    def _record(self) -> None:
        length, positions = self._cache.length, self._positions.clone()

        def restore() -> None:
            self._cache.set_length(length)
            self._positions.copy_(positions)

        device = self._forward.device
        kind = CAPTURES[device.type]
        try:
            self._capture = kind([self._run], restore, kind.new_pool(device))
        except Exception as error:
            if self._must_capture:
                raise BackendError(f"`runtime`='graph' cannot run here: the capture failed, {error}") from error
            log(logger, f"The forward could not be captured and is launched for every token: {error}")
            self._capture = Launches([self._run])
        restore()

    def _run(self) -> None:
        self.logits = self._forward.run(self._cache, self._token_ids, self._mask, self._positions)
        self._positions += self._is_used


def _capacity_for(longest: int) -> int:
    """With few columns to spare, all rows would move every few steps."""
    return bucket(longest + max(32, longest // 4))
