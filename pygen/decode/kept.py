"""Collects the kept tokens of every step on their device, and returns them by row and step."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from pygen.ops import KeptRows
from pygen.outputs import KeptSets, ranges

# A buffer of this many steps is compressed at once, if it does not take more bytes.
_STEPS, _BYTES = 64, 1 << 24


class KeptCollector:
    """Takes what every step keeps, as kernels write it, and compresses it once a buffer is full.

    So memory grows by what rows keep, not by `kept_limit`, and the host waits for a GPU only when it compresses.
    """

    def __init__(self, rows: int, device: torch.device) -> None:
        self._rows, self._device = rows, device
        self._parts: list[_Part] = []
        self._buffer: KeptRows | None = None
        self._filled = self._compressed = 0

    def add(self, kept: KeptRows) -> None:
        """Queues a copy of what the next step keeps."""
        if self._buffer is None:
            self._buffer = _buffer_for(kept)
        for table, of_step in zip(self._buffer, kept, strict=True):
            table[self._filled] = of_step
        self._filled += 1
        if self._filled == len(self._buffer.counts):
            self._compress()

    def sets(self, first: int, end: int, rows: Tensor | None = None) -> KeptSets:
        """A copy of the sets of the steps in [first, end); those of `rows`, (n,) int64, in this order, or of all.

        The host waits for the device. Steps must not be forgotten.
        """
        self._compress()
        parts = [_Part.empty(self._rows, self._device), *self._within(first, end)]
        counts, starts, log_mass, complete = (
            torch.cat(tables) if rows is None else torch.cat(tables)[:, rows]
            for tables in zip(*(part.tables for part in parts), strict=True)
        )
        offsets = torch.zeros(counts.numel() + 1, dtype=torch.int64, device=counts.device)
        torch.cumsum(counts.t().flatten(), dim=0, out=offsets[1:])
        targets = offsets[:-1].view(counts.t().shape).t()
        token_ids = torch.empty(int(offsets[-1]), dtype=torch.int32, device=counts.device)
        step = 0
        for part in parts:
            of_part = slice(step, step := step + len(part.tables[0]))
            sources = ranges(starts[of_part].flatten(), counts[of_part].flatten())
            token_ids[ranges(targets[of_part].flatten(), counts[of_part].flatten())] = part.token_ids[sources]
        return KeptSets(token_ids, offsets, log_mass.t().contiguous(), complete.t().contiguous())

    def forget(self, end: int) -> None:
        """Frees the memory of steps before `end`, as far as no later step shares it."""
        self._parts = [part for part in self._parts if part.end > end]

    def _within(self, first: int, end: int) -> Iterator[_Part]:
        """The parts of [first, end), cut to it."""
        for part in self._parts:
            begin, stop = max(first, part.first), min(end, part.end)
            if begin < stop:
                cut = slice(begin - part.first, stop - part.first)
                yield _Part(begin, stop, part.token_ids, [table[cut] for table in part.tables])

    def _compress(self) -> None:
        if self._buffer is None or self._filled == 0:
            return
        kept = KeptRows(*(table[: self._filled].flatten(0, 1) for table in self._buffer)).compressed()
        tables = [table.view(-1, self._rows) for table in (kept.offsets.diff(), kept.offsets[:-1], *kept[2:])]
        first, self._compressed = self._compressed, self._compressed + self._filled
        self._parts.append(_Part(first, self._compressed, kept.token_ids, tables))
        self._filled = 0


class _Part(NamedTuple):
    """The steps in [first, end): their ids, and tables (steps, rows): counts, where the ids of a set start in
    `token_ids`, `log_mass` and `complete`."""

    first: int
    end: int
    token_ids: Tensor
    tables: list[Tensor]

    @classmethod
    def empty(cls, rows: int, device: torch.device) -> _Part:
        """No step."""
        dtypes = (torch.int64, torch.int64, torch.float32, torch.bool)
        tables = [torch.empty((0, rows), dtype=dtype, device=device) for dtype in dtypes]
        return cls(0, 0, torch.empty(0, dtype=torch.int32, device=device), tables)


def _buffer_for(kept: KeptRows) -> KeptRows:
    """For as many steps as fit, each like `kept`."""
    steps = max(1, min(_STEPS, _BYTES // max(1, kept.token_ids.nbytes)))
    return KeptRows(*(table.new_empty((steps, *table.shape)) for table in kept))
