"""Breaks ties as every op does."""

from __future__ import annotations

import torch
from torch import Tensor


def lowest_argmax(values: Tensor) -> Tensor:
    """(rows, n) -> (rows,) int64: the lowest index of the largest value of every row. `torch.argmax` may take any."""
    indices = torch.arange(values.shape[1], device=values.device)
    return torch.where(values == values.amax(dim=1, keepdim=True), indices, values.shape[1]).amin(dim=1)
