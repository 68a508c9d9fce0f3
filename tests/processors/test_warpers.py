"""Every filter against transformers' class, over values, vocabularies, dtypes and edge rows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

from pygen import processors
from tests.processors.cases import DTYPES, VOCAB_SIZES, check_filter, rows_of, warpers

WARPERS = warpers()


@pytest.fixture(autouse=True)
def validated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Restores validation in torch's distributions, which top-h uses: torch.compile switches it off."""
    monkeypatch.setattr(torch.distributions.Distribution, "_validate_args", True)


@pytest.mark.parametrize("vocab_size", VOCAB_SIZES)
@pytest.mark.parametrize("number", range(len(WARPERS)), ids=lambda n: f"{n}-{WARPERS[n].name}")
def test_filters_as_transformers(number: int, vocab_size: int) -> None:
    warper = WARPERS[number]
    ours = getattr(processors, warper.name)(**warper.arguments)
    theirs = getattr(transformers, warper.name)(**warper.arguments)
    for dtype in DTYPES:
        for label, scores in rows_of(vocab_size, dtype):
            before = scores.clone()
            if label in ("NaN", "+inf") or (label == "none left" and warper.knob in ("top_h", "eta_cutoff")):
                assert_nothing_lost(ours, theirs, label, scores)
            else:
                check_filter(ours, theirs, warper, label, scores)
            torch.testing.assert_close(scores, before, rtol=0, atol=0, equal_nan=True)


def assert_nothing_lost(ours: Any, theirs: Any, label: str, scores: torch.Tensor) -> None:
    """Asserts that rows with invalid scores stay unfiltered. transformers raises (top_h, eta) or ranks NaN (top_k)."""
    torch.testing.assert_close(ours(None, scores), scores, rtol=0, atol=0, equal_nan=True)
    try:
        expected = theirs(None, scores)
    except ValueError:
        assert type(theirs).__name__ in ("TopHLogitsWarper", "EtaLogitsWarper")
    else:
        if type(theirs).__name__ != "TopKLogitsWarper":
            torch.testing.assert_close(scores, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("number", range(0, len(WARPERS), 4), ids=lambda n: f"{n}-{WARPERS[n].name}")
def test_strided_rows_and_more_dimensions(number: int) -> None:
    warper = getattr(processors, WARPERS[number].name)(**WARPERS[number].arguments)
    scores = torch.randn(6, 151, generator=torch.Generator().manual_seed(2))
    expected = warper(None, scores)
    assert torch.equal(warper(None, scores.T.contiguous().T), expected)
    assert torch.equal(warper(None, scores.view(2, 3, 151)), expected.view(2, 3, 151))
    assert warper(None, scores[:0]).shape == (0, 151)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("n", "keep", "kept"), [(1.0, 1, [0, 1]), (1.0, 3, [0, 1, 2]), (0.1, 1, [0]), (9.0, 1, [0, 1, 2, 3])]
)
def test_top_n_sigma(n: float, keep: int, kept: list[int], dtype: torch.dtype) -> None:
    """A class that transformers does not have. Its scores 3, 1, -1, -3 have a standard deviation of sqrt(5)."""
    scores = torch.tensor([[3.0, 1.0, -1.0, -3.0, -torch.inf]], dtype=dtype)
    warper = processors.TopNSigmaLogitsWarper(n, filter_value=-1e4, min_tokens_to_keep=keep)
    expected = torch.where(torch.isin(torch.arange(5), torch.tensor(kept)), scores, -1e4).to(dtype)
    assert warper(None, scores).equal(expected)


@pytest.mark.parametrize("n", [0.0, -1.0, float("nan"), float("inf")])
def test_top_n_sigma_refuses(n: float) -> None:
    with pytest.raises(ValueError, match="`top_n_sigma` must be a finite number > 0"):
        processors.TopNSigmaLogitsWarper(n)
    with pytest.raises(ValueError, match="`min_tokens_to_keep` must be a 64-bit integer >= 1"):
        processors.TopNSigmaLogitsWarper(1.0, min_tokens_to_keep=0)
