"""Room for tokens that a call may never generate: some at first, and twice as much wherever it runs out."""

from __future__ import annotations

import torch
from torch import Tensor

# Tokens that every call has room for at once, as far as it may generate so many.
FIRST_ROOM = 1024


def first_room(most: int) -> int:
    """`most`: tokens that will be generated at most."""
    return min(most, FIRST_ROOM)


def grown_room(room: int, needed: int, most: int | None = None) -> int:
    """Room for at least `needed` tokens where there was `room`; no more than `most`, unless that is too little."""
    doubled = max(2 * room, needed)
    return doubled if most is None else max(min(doubled, most), needed)


def widened(table: Tensor, size: int, dim: int = -1) -> Tensor:
    """A copy of `table` with `size` entries along `dim`; those behind its own are undefined."""
    shape = list(table.shape)
    shape[dim] = size
    wide = torch.empty(shape, dtype=table.dtype, device=table.device)
    wide.narrow(dim, 0, table.shape[dim]).copy_(table)
    return wide
