"""The rows of a batch whose steps are launched one by one, over a cache of as many columns as they need."""

from __future__ import annotations

import torch
from torch import Tensor

from pygen.batch.forward import BatchForward
from pygen.batch.row import Row
from pygen.batch.window_cache import WindowCache

_FIRST_CAPACITY = 256


class WindowRows:
    """Keeps the rows side by side, so that a forward computes nothing for rows that are not there.

    looks_late: see `Rows`.
    """

    looks_late = False

    def __init__(self, forward: BatchForward, num_rows: int) -> None:
        self._forward = forward
        self._rows: list[Row] = []
        self._cache = WindowCache(forward.kinds, rows=num_rows, capacity=_FIRST_CAPACITY)

    @property
    def present(self) -> list[Row]:
        return [*self._rows]

    def add(self, row: Row, source: WindowCache, source_row: int) -> None:
        self._rows.append(row)
        self._fit()
        self._cache.put_row(len(self._rows) - 1, source, source_row, row.length)

    def forward(self) -> tuple[list[Row], Tensor]:
        self._fit()
        rows = self._rows
        self._cache.use_rows(len(rows))
        token_ids = torch.tensor([[row.last_token] for row in rows], device=self._forward.device)
        logits = self._forward.read(self._cache, token_ids, [row.length for row in rows])
        for row in rows:
            row.length += 1
        return [*rows], logits

    def feed(self, rows: list[Row], token_ids: Tensor) -> None:
        """The next forward reads the tokens from the rows."""

    def remove(self, row: Row) -> None:
        """Moves the last row into its place."""
        number, last = self._rows.index(row), len(self._rows) - 1
        moved = self._rows[last]
        # Invalid keys or values would reach a later row there through its mask.
        if row.is_tainted:
            self._cache.clear_row(number)
        if number < last:
            self._cache.move_row(last, number)
            if moved.is_tainted:
                self._cache.clear_row(last)
        self._rows[number] = moved
        self._rows.pop()

    def take_all(self) -> list[Row]:
        rows, self._rows = self._rows, []
        self._cache.reset()
        return rows

    def _fit(self) -> None:
        self._cache.fit(max(row.length for row in self._rows), more=1)
