"""Which of equal scores the filters keep: half-precision logits tie often, and transformers' order decides."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from pygen.ops import process_logits, sample
from tests.helpers.extra_backends import EMULATED
from tests.helpers.logits import make_logits
from tests.helpers.transformers_oracle import processed

COMMON = {"temperature": 0.7, "top_k": 50, "top_p": 0.9}
# One vocabulary fits a kernel's list of the largest scores; kernels scan the other as a whole.
LARGE = 5003 if EMULATED else 128256


def tied_logits(rows: int, vocab_size: int) -> Tensor:
    return make_logits("normal", rows, vocab_size, seed=7, dtype=torch.bfloat16) * 2


def split_rows(scores: Tensor, before_filters: Tensor) -> int:
    """Counts the rows that lost some, but not all, of several equal scores."""
    split = 0
    for after, before in zip(scores, before_filters, strict=True):
        kept = after > -torch.inf
        split += bool(torch.isin(before[~kept], before[kept]).any())
    return split


@pytest.mark.parametrize(
    ("vocab_size", "rows", "knobs"),
    [
        (LARGE, 12, COMMON),
        (300, 60, COMMON),
        (300, 60, {"temperature": 0.7, "top_p": 0.6}),
        (300, 60, {**COMMON, "min_tokens_to_keep": 30}),
        (300, 60, {"typical_p": 0.1, "min_tokens_to_keep": 20}),
        (300, 60, {"top_h": 0.5, "top_p": 0.8, "min_p": 0.9, "min_tokens_to_keep": 4}),
    ],
    ids=str,
)
def test_kept_of_equal_scores(backend: str, vocab_size: int, rows: int, knobs: dict[str, Any]) -> None:
    """Both ops that filter keep exactly the tokens that transformers keeps with a stable sort."""
    rows = rows // 3 if EMULATED else rows
    logits = tied_logits(rows, vocab_size)
    wanted = processed(logits, knobs)
    assert split_rows(wanted, logits.float()) >= rows // 15
    kept = wanted > -torch.inf
    assert (process_logits(logits, **knobs, backend=backend) > -torch.inf).equal(kept)

    max_kept = int(kept.sum(dim=1).max())
    tops = sample(logits, **knobs, seed=1, logprobs=max_kept, backend=backend).top_logprobs
    assert tops is not None
    drawable = torch.zeros(rows, vocab_size + 1, dtype=torch.bool).scatter_(1, tops.token_ids % (vocab_size + 1), True)
    assert drawable[:, :-1].equal(kept)


@pytest.mark.parametrize("vocab_size", [9, LARGE])
def test_a_row_of_equal_scores(backend: str, vocab_size: int) -> None:
    logits = torch.zeros(1, vocab_size)
    for top_p, count in ((0.0, 1), (0.5, (vocab_size + 1) // 2)):
        kept = torch.arange(vocab_size) >= vocab_size - count
        assert (process_logits(logits, top_p=top_p, backend=backend)[0] > -torch.inf).equal(kept)
        # The lowest of equal ids wins the race, as the lowest of all wins greedy search.
        noise = torch.ones(1, vocab_size)
        assert sample(logits, top_p=top_p, noise=noise, backend=backend).token_ids.item() == vocab_size - count
    assert sample(logits, do_sample=False, backend=backend).token_ids.item() == 0


def test_equal_distances_of_tokens_that_another_filter_removed(backend: str, request: pytest.FixtureRequest) -> None:
    """Beside a gigantic score, all others are equally far from the entropy; those that top_k removed do not count."""
    if backend in ("cuda", "cuda_host"):
        why = "CUDA drops ties of two different scores at most; docs/internals/kernels.md says so"
        request.applymarker(pytest.mark.xfail(strict=True, reason=why))
    logits = make_logits("normal", 1, 5000)
    logits[0, 7] = 3e38
    knobs: dict[str, Any] = {"temperature": 0.5, "typical_p": 0.99, "min_tokens_to_keep": 3}
    left = logits[0].topk(2500).indices.sort().values
    wanted = sorted([7, *left[left != 7][:2].tolist()])
    scores = process_logits(logits, top_k=2500, **knobs, backend=backend)
    assert (scores[0] > -torch.inf).nonzero()[:, 0].tolist() == wanted
