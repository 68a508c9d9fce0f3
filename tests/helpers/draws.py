"""Compares draws: exactly, except for races too close to call, and by chi-squared."""

from __future__ import annotations

import torch
from torch import Tensor

# Kernels compute scores and log noise in float32. Two race scores with a smaller relative distance may swap.
RACE_BAND = 1e-5

# A correct sampler fails a test at this level once in a million seeds. The tests fix their seeds.
ALPHA = 1e-6


def assert_same_tokens(actual: Tensor, expected: Tensor, scores: Tensor, noise: Tensor) -> None:
    """Asserts equal tokens in every row. Race scores `scores - ln noise` closer than RACE_BAND may swap."""
    race = scores.double() - noise.double().log()
    for row in (actual != expected).nonzero()[:, 0].tolist():
        a, b = race[row, actual[row]].item(), race[row, expected[row]].item()
        assert scores[row, actual[row]] > -torch.inf, f"row {row}: id {actual[row]} was removed"
        close = abs(a - b) <= RACE_BAND * max(1.0, abs(a), abs(b))
        assert close, f"row {row}: id {actual[row]} at {a} for id {expected[row]} at {b}"


def chi_squared_p_value(counts: Tensor, probabilities: Tensor) -> float:
    """Returns the p-value of `counts` (n,) under `probabilities` (n,). Rare bins merge until each expects 5 or more."""
    draws = counts.sum().item()
    order = probabilities.argsort()
    observed, expected = [0.0], [0.0]
    for count, probability in zip(counts[order].tolist(), probabilities[order].tolist(), strict=True):
        if expected[-1] >= 5:
            observed.append(0.0)
            expected.append(0.0)
        observed[-1] += count
        expected[-1] += probability * draws
    statistic = sum((o - e) ** 2 / e for o, e in zip(observed, expected, strict=True))
    if len(expected) == 1:
        return 1.0
    half = torch.tensor([(len(expected) - 1) / 2, statistic / 2], dtype=torch.float64)
    return float(torch.special.gammaincc(half[0], half[1]))


def assert_distribution(token_ids: Tensor, scores: Tensor) -> None:
    """Asserts that tokens follow softmax(scores), scores (vocab_size,), and that none is outside the support."""
    probabilities = torch.softmax(scores.double(), dim=0)
    counts = torch.bincount(token_ids, minlength=len(scores))
    assert len(counts) == len(scores)
    assert counts[scores == -torch.inf].sum() == 0, "a removed token was drawn"
    kept = probabilities > 0
    p_value = chi_squared_p_value(counts[kept], probabilities[kept])
    assert p_value > ALPHA, f"p-value {p_value}"
