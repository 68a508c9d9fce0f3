"""The tokens that the filters may keep: an independent definition in numpy, with one rule for rounding.

Scores of kept tokens are equal bit for bit, and the kept set is that of exact arithmetic. transformers and the kernels
compute masses, probabilities and entropies in float32. So a token may differ only if moving a threshold by at most BAND
decides it differently. Top-k compares scores and has no band.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pygen.knobs import FILTERS as FILTER_KNOBS
from pygen.knobs import NEUTRAL

BAND = 4e-6

FILTERS = tuple(knob.name for knob in FILTER_KNOBS)

Knobs = dict[str, Any]
Scores = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
Ids = npt.NDArray[np.int64]


def knobs_of_row(knobs: Knobs, row: int) -> Knobs:
    """Returns the knobs with every per-row tensor replaced by its value for `row`."""
    return {
        k: v[row].item() if isinstance(v, Tensor) and v.dim() == 1 and k in _PER_ROW else v for k, v in knobs.items()
    }


_PER_ROW = {*NEUTRAL, "do_sample", "prompt_lengths"}


def unfiltered(knobs: Knobs) -> Knobs:
    """Returns the same knobs with every filter off."""
    return {name: value for name, value in knobs.items() if name not in FILTERS}


def assert_same_scores(actual: Tensor, expected: Tensor, before_filters: Tensor, knobs: Knobs) -> None:
    """Asserts that two results of process_logits with `knobs` agree. `before_filters` is the result without filters."""
    assert actual.shape == expected.shape == before_filters.shape
    assert actual.dtype is torch.float32
    for row in range(actual.shape[0]):
        _assert_same_row(actual[row], expected[row], before_filters[row], knobs_of_row(knobs, row), row)


def _assert_same_row(actual: Tensor, expected: Tensor, before_filters: Tensor, knobs: Knobs, row: int) -> None:
    if torch.equal(actual, expected):
        return
    if not before_filters.isfinite().any() or not knobs.get("do_sample", True) or knobs.get("temperature", 1) == 0:
        torch.testing.assert_close(actual, expected, rtol=0, atol=0, equal_nan=True)
        return
    always, possibly = kept_bounds(before_filters.double().numpy(), knobs)
    for name, scores in (("actual", actual), ("expected", expected)):
        kept = (scores > -torch.inf).numpy()
        missing, extra = np.flatnonzero(always & ~kept), np.flatnonzero(kept & ~possibly)
        assert missing.size == 0, f"{name}: row {row} misses ids {missing[:10]} ({missing.size}) under {knobs}"
        assert extra.size == 0, f"{name}: row {row} keeps ids {extra[:10]} ({extra.size}) too many under {knobs}"
        same = scores[scores > -torch.inf].equal(before_filters[scores > -torch.inf])
        assert same, f"{name}: row {row} changed a score that it kept under {knobs}"


def kept_bounds(s: Scores, knobs: Knobs) -> tuple[Mask, Mask]:
    """Returns the tokens kept for all thresholds within BAND, and those kept for any such threshold."""
    keep = min(int(knobs.get("min_tokens_to_keep", 1)), s.size)
    active = [name for name in FILTERS if knobs.get(name) not in (None, NEUTRAL[name])]
    always, possibly = s > -np.inf, np.zeros(s.shape, dtype=bool)
    for moves in itertools.product((-BAND, 0.0, BAND), repeat=len(active)):
        kept = s > -np.inf
        for name, move in zip(active, moves, strict=True):
            kept &= _KEEP[name](np.where(kept, s, -np.inf), float(np.float32(knobs[name])), keep, move)
        always, possibly = always & kept, possibly | kept
    return always, possibly


def _softmax(s: Scores) -> Scores:
    p = np.exp(s - s.max())
    shares: Scores = p / p.sum()
    return shares


def _surprise(s: Scores) -> Scores:
    best = float(s.max())
    return float(np.log(np.exp(s - best).sum())) + best - s


def _entropy(s: Scores) -> float:
    p = _softmax(s)
    return float((p[p > 0] * _surprise(s)[p > 0]).sum())


def _first(order: Ids, count: int, size: int) -> Mask:
    mask = np.zeros(size, dtype=bool)
    mask[order[:count]] = True
    return mask


def _descending(s: Scores) -> Ids:
    return np.argsort(-s, kind="stable")


def _top_n_sigma(s: Scores, n: float, keep: int, move: float) -> Mask:
    cut = s.max() - n * s[s > -np.inf].std() * (1 + move)
    kept: Mask = (s >= cut) | (s >= np.sort(s)[::-1][keep - 1])
    return kept


def _top_h(s: Scores, top_h: float, keep: int, move: float) -> Mask:
    order = _descending(s)[:100]
    best = s[order][s[order] > -np.inf]
    p = _softmax(best)
    reached = np.cumsum(p * _surprise(best))
    kept = int((reached <= top_h * reached[-1] + move * (1 + reached[-1])).sum())
    return _first(order, max(kept, 1), s.size)


def _top_k(s: Scores, top_k: float, keep: int, move: float) -> Mask:
    return s >= float(np.sort(s)[::-1][min(max(int(top_k), keep), s.size) - 1])


def _top_p(s: Scores, top_p: float, keep: int, move: float) -> Mask:
    order = np.argsort(s, kind="stable")[::-1]
    p = _softmax(s)[order]
    mass_before = np.concatenate([[0.0], np.cumsum(p)[:-1]])
    return _first(order, max(int((mass_before < top_p + move).sum()), keep), s.size)


def _min_p(s: Scores, min_p: float, keep: int, move: float) -> Mask:
    p = _softmax(s)
    return (p >= min_p * float(p.max()) * (1 - move)) | _first(_descending(s), keep, s.size)


def _typical_p(s: Scores, typical_p: float, keep: int, move: float) -> Mask:
    surprise = _surprise(s)
    distance = np.abs(surprise - _entropy(s))
    order = np.argsort(distance, kind="stable")
    finite = int((s > -np.inf).sum())
    reached = np.cumsum(_softmax(s)[order])
    at = order[min(max(int((reached < typical_p + move).sum()), 0), finite - 1)]
    slack = move * (1 + np.where(s > -np.inf, surprise, 0.0))
    # Equal distances keep the lowest ids. Distances within the band of the last one may have another order.
    forced = distance[order[min(keep, finite) - 1]]
    nearest = (distance != forced) & (distance <= forced + slack) | (distance == forced) & _first(order, keep, s.size)
    near: Mask = distance <= distance[at] + slack
    return near | (nearest if keep > 1 else _first(order, 1, s.size))


def _epsilon(s: Scores, epsilon: float, keep: int, move: float) -> Mask:
    return (_softmax(s) >= epsilon * (1 - move)) | (s >= float(np.sort(s)[::-1][keep - 1]))


def _eta(s: Scores, eta: float, keep: int, move: float) -> Mask:
    entropy = _entropy(s)
    return _epsilon(s, min(eta, np.sqrt(eta) * np.exp(-entropy)), keep, move * (1 + entropy))


_KEEP = {
    "top_n_sigma": _top_n_sigma,
    "top_h": _top_h,
    "top_k": _top_k,
    "top_p": _top_p,
    "min_p": _min_p,
    "typical_p": _typical_p,
    "epsilon_cutoff": _epsilon,
    "eta_cutoff": _eta,
}
