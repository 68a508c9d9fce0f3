"""Filters of rows with as many equal scores as a kernel handles at once, one fewer, and one more."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pygen.ops import process_logits

SIZE = 9001
# What a Triton program compares pair by pair, holds in registers, and lists.
LIMITS = [128, 1024, 4096]
KNOBS: list[dict[str, Any]] = [
    {"top_k": 50, "top_p": 0.7, "temperature": 0.7},
    {"top_k": 50, "min_p": 0.3, "typical_p": 0.6, "min_tokens_to_keep": 60},
    {"typical_p": 0.95, "epsilon_cutoff": 1e-5},
]


@pytest.mark.parametrize("count", [limit + more for limit in LIMITS for more in (-1, 0, 1)])
@pytest.mark.parametrize("knobs", KNOBS, ids=str)
@pytest.mark.parametrize("spread", [True, False])
def test_equal_scores(kernel_backend: str, knobs: dict[str, Any], count: int, spread: bool) -> None:
    """spread: over the whole row, or side by side behind its other scores."""
    logits = torch.randn((1, SIZE), generator=torch.Generator().manual_seed(count)) - 9
    ids = torch.arange(count) * (SIZE // count) if spread else torch.arange(SIZE - count, SIZE)
    logits[0, ids] = 3.0
    expected = process_logits(logits, **knobs, backend="torch")
    assert torch.equal(process_logits(logits, **knobs, backend=kernel_backend), expected)
