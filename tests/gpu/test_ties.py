"""Equal logits at the top-p boundary on a GPU: the kept ids are those of torch's own sort."""

from __future__ import annotations

import pytest
import torch

from pygen.ops import process_logits

DEVICE = "cuda"


@pytest.mark.parametrize("vocab_size", [5000, 128256])
def test_torch_sorts_large_rows_stably(vocab_size: int) -> None:
    """The kernels' rule relies on this: torch keeps equal scores in the order of their ids, stable=True or not."""
    scores = (torch.randn(8, vocab_size, generator=torch.Generator().manual_seed(1)) * 2).bfloat16().float().to(DEVICE)
    assert torch.sort(scores).indices.equal(torch.sort(scores, stable=True).indices)


@pytest.mark.parametrize("backend", ["cuda", "triton"])
@pytest.mark.parametrize("vocab_size", [5000, 128256])
def test_kept_sets_of_bfloat16_logits(backend: str, vocab_size: int) -> None:
    logits = (torch.randn(64, vocab_size, generator=torch.Generator().manual_seed(2)) * 2).bfloat16().to(DEVICE)
    top_p = 0.9
    scores = process_logits(logits, temperature=0.7, top_k=50, backend=backend)
    ascending, ids = torch.sort(scores)
    removed = ascending.softmax(-1).cumsum(-1) <= 1 - top_p
    wanted = scores.masked_fill(removed.scatter(1, ids, removed), -torch.inf)
    assert process_logits(logits, temperature=0.7, top_k=50, top_p=top_p, backend=backend).equal(wanted)
