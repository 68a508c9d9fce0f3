"""Checks of constructor arguments, and the forms that processors keep ids in."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pygen.rules import shown


def id_tensor(name: str, value: Any, device: str | torch.device = "cpu", *, low: int | None = None) -> Tensor:
    """Token ids as (n,) int64 from an int, a sequence or a tensor; a tensor stays on its device."""
    ids = value if isinstance(value, Tensor) else torch.tensor(value, device=device)
    if ids.numel() and (ids.is_floating_point() or (low is not None and bool((ids < low).any()))):
        least = "" if low is None else f" >= {low}"
        raise ValueError(f"`{name}` must hold integer ids{least}, got {shown(value)}")
    return ids.reshape(-1).long()


def existing(ids: Tensor, vocab_size: int) -> Tensor:
    """Those of `ids` (n,) that scores over `vocab_size` tokens have a column for; -1 counts from no end."""
    return ids[(ids >= 0) & (ids < vocab_size)]


def rows_of_batch(name: str, value: Tensor, rows: int) -> Tensor:
    """Repeats each item of a batch (batch_size, ...) side by side, so that there is one for each of `rows`."""
    batch_size = value.shape[0]
    if batch_size == rows:
        return value
    if batch_size == 0 or rows % batch_size:
        raise ValueError(
            f"`{name}` must have a number of rows that divides that of the scores, {rows}, got {batch_size}"
        )
    return value.repeat_interleave(rows // batch_size, dim=0)
