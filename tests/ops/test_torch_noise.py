"""rng="torch": the token and generator state of `torch.multinomial(torch.softmax(scores, -1), 1)`."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pygen.ops import prepare_sample, sample
from tests.helpers.draws import assert_same_tokens
from tests.helpers.extra_backends import EMULATED
from tests.helpers.logits import make_history, make_logits
from tests.helpers.transformers_oracle import drawn, processed

SEEDS = 5 if EMULATED else 500

SETTINGS: dict[str, dict[str, Any]] = {
    "neutral": {},
    "temperature": {"temperature": 1.7},
    "top_k": {"top_k": 40},
    "top_p": {"top_p": 0.92},
    "min_p": {"min_p": 0.02},
    "typical_p": {"typical_p": 0.9},
    "cutoffs": {"epsilon_cutoff": 2e-3, "eta_cutoff": 2e-3},
    "top_h": {"top_h": 0.7},
    "penalties": {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2, "temperature": 0.9},
    "common": {"temperature": 0.7, "top_k": 50, "top_p": 0.9, "repetition_penalty": 1.1},
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_many_seeds_against_transformers(backend: str, setting: str) -> None:
    rows, vocab_size = 3, 211
    logits = make_logits("normal", rows, vocab_size, seed=6) * 2
    knobs = {**SETTINGS[setting], "input_ids": make_history(rows, 12, vocab_size)}
    scores = processed(logits, knobs)
    ours, theirs = torch.Generator(), torch.Generator()
    prepared = prepare_sample(logits, **knobs, rng="torch", generator=ours, backend=backend)
    # The reference is slow.
    for seed in range(SEEDS // 5 if backend == "torch" else SEEDS):
        ours.manual_seed(seed)
        theirs.manual_seed(seed)
        _assert_same_draw(prepared(logits).token_ids, scores, theirs)
        assert ours.get_state().equal(theirs.get_state())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("setting", ["neutral", "common"])
def test_large_rows_from_a_running_generator(backend: str, setting: str, dtype: torch.dtype) -> None:
    rows, vocab_size = 3, 5003 if EMULATED else 50257
    logits = make_logits("spread", rows, vocab_size, seed=1, dtype=dtype)
    knobs = {**SETTINGS[setting], "input_ids": make_history(rows, 30, vocab_size)}
    scores = processed(logits, knobs)
    ours, theirs = torch.Generator().manual_seed(2), torch.Generator().manual_seed(2)
    for draw in range(3):
        for generator in (ours, theirs):
            torch.rand(777 + draw, generator=generator)
            torch.randn(1, generator=generator)
        tokens = sample(logits, **knobs, rng="torch", generator=ours, backend=backend).token_ids
        _assert_same_draw(tokens, scores, theirs)
        assert ours.get_state().equal(theirs.get_state())


@pytest.mark.parametrize("vocab_size", [1, 2, 311, 312, 313, 624, 625])
@pytest.mark.parametrize("rows", [1, 2, 9 if EMULATED else 70])
def test_state_at_the_edges_of_a_block(backend: str, vocab_size: int, rows: int) -> None:
    """The generator tempers 624 words at a time; rows end before, at and after that boundary."""
    logits = make_logits("normal", rows, vocab_size)
    ours, theirs = torch.Generator().manual_seed(5), torch.Generator().manual_seed(5)
    for skipped in (0, 1, 311, 622, 623):
        for generator in (ours, theirs):
            torch.randint(2**32, (skipped,), generator=generator)
        tokens = sample(logits, rng="torch", generator=ours, top_k=30, backend=backend).token_ids
        _assert_same_draw(tokens, processed(logits, {"top_k": 30}), theirs)
        assert ours.get_state().equal(theirs.get_state())


def test_the_default_generator(backend: str) -> None:
    logits = make_logits("normal", 4, 300)
    torch.manual_seed(31)
    tokens, after = sample(logits, rng="torch", backend=backend).token_ids, torch.get_rng_state()
    torch.manual_seed(31)
    assert tokens.equal(torch.multinomial(torch.softmax(logits, -1), 1)[:, 0])
    assert after.equal(torch.get_rng_state())


def test_greedy_and_bad_rows_consume_their_noise(backend: str) -> None:
    logits = make_logits("normal", 4, 300)
    bad = logits.clone()
    bad[1, 7] = torch.nan
    do_sample = torch.tensor([True, True, False, True])
    ours, theirs = torch.Generator().manual_seed(2), torch.Generator().manual_seed(2)
    tokens = sample(bad, do_sample=do_sample, rng="torch", generator=ours, backend=backend).token_ids
    expected = drawn(logits, theirs)
    assert tokens[[0, 3]].equal(expected[[0, 3]])
    assert tokens[2] == logits[2].argmax()
    assert ours.get_state().equal(theirs.get_state())


@pytest.mark.parametrize("temperature", [1.0, 0.0])
def test_what_advances_the_generator(backend: str, temperature: float) -> None:
    logits = make_logits("normal", 4, 300)
    generator = torch.Generator().manual_seed(2)
    before = generator.get_state()
    sample(logits, do_sample=False, temperature=temperature, rng="torch", generator=generator, backend=backend)
    assert generator.get_state().equal(before)
    sample(logits[:0], rng="torch", generator=generator, backend=backend)
    assert generator.get_state().equal(before)
    sample(logits, temperature=temperature, rng="torch", generator=generator, backend=backend)
    assert not generator.get_state().equal(before)


def _assert_same_draw(tokens: torch.Tensor, scores: torch.Tensor, generator: torch.Generator) -> None:
    before = generator.get_state()
    expected = drawn(scores, generator)
    if not tokens.equal(expected):
        replayed = torch.Generator()
        replayed.set_state(before)
        assert_same_tokens(tokens, expected, scores, torch.empty_like(scores).exponential_(generator=replayed))
