"""Collects the kept tokens of every step on their device, and returns them by row and step."""

from __future__ import annotations

import torch

from pygen.ops import KeptRows
from pygen.ops._kept_tokens import empty_kept
from pygen.outputs import KeptSets, ranges

# A buffer of this many steps is compressed at once, if it does not take more bytes.
_STEPS, _BYTES = 64, 1 << 24


class KeptCollector:
    """Takes what every step keeps, as kernels write it, and compresses it once a buffer is full.

    So memory grows by what rows keep, not by `kept_limit`, and the host waits for a GPU only when it compresses.
    """

    def __init__(self, rows: int, device: torch.device) -> None:
        self._rows = rows
        # Whole steps each, every row of one step before those of the next.
        self._parts = [empty_kept(0, 1, device).compressed()]
        self._buffer: KeptRows | None = None
        self._filled = 0

    def add(self, kept: KeptRows) -> None:
        """Queues a copy of what the next step keeps."""
        if self._buffer is None:
            self._buffer = _buffer_for(kept)
        for table, of_step in zip(self._buffer, kept, strict=True):
            table[self._filled] = of_step
        self._filled += 1
        if self._filled == len(self._buffer.counts):
            self._compress()

    def sets(self, steps: int) -> KeptSets:
        """The sets of the first `steps` steps. The host waits for the device."""
        self._compress()
        counts, log_mass, complete = (
            torch.cat(tables).view(-1, self._rows)[:steps].t().contiguous()
            for tables in zip(*((p.offsets.diff(), p.log_mass, p.complete) for p in self._parts), strict=True)
        )
        offsets = torch.zeros(counts.numel() + 1, dtype=torch.int64, device=counts.device)
        torch.cumsum(counts.flatten(), dim=0, out=offsets[1:])
        # Where each set begins, and its size, in the order of the parts.
        starts, sizes = offsets[:-1].view_as(counts).t().flatten(), counts.t().flatten()
        token_ids = torch.empty(int(offsets[-1]), dtype=torch.int32, device=counts.device)
        done = 0
        for part in self._parts:
            some = slice(done, done := done + len(part.log_mass))
            to = ranges(starts[some], sizes[some])
            token_ids[to] = part.token_ids[: len(to)]
        return KeptSets(token_ids, offsets, log_mass, complete)

    def _compress(self) -> None:
        if self._buffer is not None and self._filled > 0:
            self._parts.append(KeptRows(*(table[: self._filled].flatten(0, 1) for table in self._buffer)).compressed())
            self._filled = 0


def _buffer_for(kept: KeptRows) -> KeptRows:
    """For as many steps as fit, each like `kept`."""
    steps = max(1, min(_STEPS, _BYTES // max(1, kept.token_ids.nbytes)))
    return KeptRows(*(table.new_empty((steps, *table.shape)) for table in kept))
