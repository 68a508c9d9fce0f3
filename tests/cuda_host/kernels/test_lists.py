"""More best tokens than a kernel's list holds (2,048): kernels write one full list after another, in order."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pygen.ops import TopLogprobs, sample, token_logprobs
from tests.helpers.logits import make_logits

# The vocabulary is two lists, so the last is full and the next is empty. Counts go from fewer to more than exist.
VOCAB, COUNTS = 4096, [2048, 3000, 4096, 5000]


def assert_best(top: TopLogprobs | None, logits: Tensor, count: int) -> None:
    assert top is not None
    order = torch.sort(logits, dim=1, descending=True, stable=True).indices[:, :count]
    values = torch.log_softmax(logits.double(), 1).float().gather(1, order)
    found = order.shape[1]
    assert top.token_ids[:, :found].equal(order)
    torch.testing.assert_close(top.logprobs[:, :found], values, rtol=1e-5, atol=1e-5)
    assert (top.token_ids[:, found:] == -1).all() and (top.logprobs[:, found:] == -torch.inf).all()


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("kind", ["normal", "ties"])
def test_best_of_long_rows(backend: str, kind: str, count: int) -> None:
    logits = make_logits(kind, 1, VOCAB)
    assert_best(token_logprobs(logits, torch.tensor([5]), top=count, backend=backend).top_logprobs, logits, count)
    assert_best(sample(logits, seed=1, logprobs=count, backend=backend).top_logprobs, logits, count)
