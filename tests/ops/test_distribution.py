"""Chi-squared tests with merged bins over 2**20 draws at fixed seeds. No draw may be a removed token."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pygen import rng
from pygen.ops import process_logits, sample
from tests.helpers.draws import ALPHA, assert_distribution, chi_squared_p_value
from tests.helpers.logits import make_logits

DRAWS = 2**20
VOCAB_SIZE = 75

SETTINGS: dict[str, dict[str, Any]] = {
    "neutral": {},
    "temperature": {"temperature": 1.5},
    "top_k": {"top_k": 20},
    "top_p": {"top_p": 0.9},
    "min_p": {"min_p": 0.05},
    "typical_p": {"typical_p": 0.8},
    "epsilon_cutoff": {"epsilon_cutoff": 0.01},
    "eta_cutoff": {"eta_cutoff": 0.02},
    "top_h": {"top_h": 0.7},
    "top_n_sigma": {"top_n_sigma": 1.2},
    "all": {"temperature": 1.2, "top_k": 60, "top_p": 0.97, "min_p": 0.01, "epsilon_cutoff": 1e-3},
}


def _logits() -> torch.Tensor:
    return make_logits("normal", 1, VOCAB_SIZE, seed=12) * 1.5


@pytest.mark.parametrize("setting", SETTINGS)
def test_philox_over_row_seeds(setting: str) -> None:
    knobs, logits = SETTINGS[setting], _logits()
    many = logits.expand(DRAWS, VOCAB_SIZE)
    tokens = sample(many, seed=rng.row_seeds(1, DRAWS), **knobs, backend="cpu").token_ids
    assert_distribution(tokens, process_logits(logits, **knobs, backend="torch")[0])


@pytest.mark.parametrize("setting", ["neutral", "top_p"])
def test_philox_over_steps(setting: str) -> None:
    knobs, logits = SETTINGS[setting], _logits()
    seeds = torch.zeros(DRAWS, dtype=torch.int64)
    many = logits.expand(DRAWS, VOCAB_SIZE)
    tokens = sample(many, seed=seeds, step=torch.arange(DRAWS), **knobs, backend="cpu").token_ids
    assert_distribution(tokens, process_logits(logits, **knobs, backend="torch")[0])


@pytest.mark.parametrize("setting", ["neutral", "common"])
def test_torch_noise(setting: str) -> None:
    knobs = {} if setting == "neutral" else SETTINGS["all"]
    logits = _logits()
    generator = torch.Generator().manual_seed(3)
    tokens = sample(
        logits.expand(DRAWS, VOCAB_SIZE), rng="torch", generator=generator, **knobs, backend="cpu"
    ).token_ids
    assert_distribution(tokens, process_logits(logits, **knobs, backend="torch")[0])


@pytest.mark.parametrize("setting", ["neutral", "all"])
def test_the_reference(setting: str) -> None:
    """Uses fewer draws, because the reference processes one row at a time."""
    knobs, logits = SETTINGS[setting], _logits()
    tokens = sample(logits.expand(2**13, VOCAB_SIZE), seed=4, **knobs, backend="torch").token_ids
    assert_distribution(tokens, process_logits(logits, **knobs, backend="torch")[0])


def test_neighbouring_tokens_are_independent() -> None:
    """Pairs of draws that differ only in step follow the product distribution (chi-squared)."""
    logits = torch.tensor([[0.0, 1.0, -1.0, 0.5]])
    seeds = rng.row_seeds(7, DRAWS)
    first, second = (sample(logits.expand(DRAWS, 4), seed=seeds, step=step, backend="cpu").token_ids for step in (0, 1))
    p = torch.softmax(logits[0].double(), 0)
    counts = torch.bincount(first * 4 + second, minlength=16)
    assert chi_squared_p_value(counts, torch.outer(p, p).flatten()) > ALPHA


def test_the_test_sees_a_wrong_temperature() -> None:
    logits = _logits()
    tokens = sample(logits.expand(DRAWS, VOCAB_SIZE), seed=1, temperature=1.02, backend="cpu").token_ids
    with pytest.raises(AssertionError, match="p-value"):
        assert_distribution(tokens, logits[0])
