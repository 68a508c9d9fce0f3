"""Inputs of the op tests: reproducible logits of several kinds and layouts."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.helpers.extra_backends import EMULATED

# Several blocks or programs share the largest vocabulary.
VOCAB_SIZES = (1, 7, 111, 5003) if EMULATED else (1, 7, 111, 32000, 50257, 128256)
SEVERAL_ROWS, MANY_ROWS = (2, 9) if EMULATED else (9, 99)
KINDS = ("ties", "masked") if EMULATED else ("normal", "spread", "ties", "masked")


def make_logits(kind: str, rows: int, vocab_size: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """normal: N(0, 1). spread: N(0, 5). ties: multiples of 1/2. masked: N(0, 2), 90% at -inf, at least one finite."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(rows, vocab_size, generator=generator)
    if kind == "spread":
        values = values * 5
    elif kind == "ties":
        values = (values * 2).round() / 2
    elif kind == "masked":
        hidden = torch.rand(rows, vocab_size, generator=generator) < 0.9
        hidden[:, vocab_size // 2] = False
        values = (values * 2).masked_fill(hidden, -torch.inf)
    return values.to(dtype)


def strided_rows(logits: Tensor) -> Tensor:
    """Returns the same values with gaps between the rows."""
    rows, vocab_size = logits.shape
    wide = torch.full((rows, vocab_size + 5), 77.0, dtype=logits.dtype)
    wide[:, 2 : vocab_size + 2] = logits
    return wide[:, 2 : vocab_size + 2]


def make_history(rows: int, length: int, vocab_size: int, seed: int = 0) -> Tensor:
    """Returns (rows, length) int64 ids, drawn from at most 50 different ones so that they repeat."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, min(vocab_size, 50), (rows, length), generator=generator) * max(vocab_size // 50, 1)
