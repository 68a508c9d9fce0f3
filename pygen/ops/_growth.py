"""Tables for tokens that a call may never generate: they start small and double whenever they are full."""

from __future__ import annotations

import torch
from torch import Tensor

# The initial capacity of every table in tokens, unless the call generates fewer.
FIRST_CAPACITY = 1024


def first_capacity(max_tokens: int) -> int:
    """Returns the initial capacity of a table for a call of at most `max_tokens` tokens."""
    return min(max_tokens, FIRST_CAPACITY)


def grown_capacity(capacity: int, needed: int, maximum: int | None = None) -> int:
    """Returns the next capacity after `capacity`: at least `needed`, otherwise at most `maximum`."""
    doubled = max(2 * capacity, needed)
    return doubled if maximum is None else max(min(doubled, maximum), needed)


def widened(table: Tensor, size: int, dim: int = -1) -> Tensor:
    """Returns a copy of `table` with `size` entries along `dim`; new entries are undefined."""
    shape = list(table.shape)
    shape[dim] = size
    wide = torch.empty(shape, dtype=table.dtype, device=table.device)
    wide.narrow(dim, 0, table.shape[dim]).copy_(table)
    return wide
