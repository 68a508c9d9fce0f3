"""process_logits: hand-checked rows, then every backend against transformers, then layouts and invalid rows."""

from __future__ import annotations

import functools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from pygen.ops import process_logits
from tests.helpers.hand_rows import HAND_ROWS, HandRow
from tests.helpers.kept_sets import assert_same_scores, unfiltered
from tests.helpers.logits import KINDS, MANY_ROWS, VOCAB_SIZES, make_history, make_logits, strided_rows
from tests.helpers.transformers_oracle import processed

DTYPES = (torch.float32, torch.float16, torch.bfloat16)

SETTINGS: dict[str, dict[str, Any]] = {
    "temperature": {"temperature": 0.7},
    "top_k": {"top_k": 50},
    "top_k 1": {"top_k": 1, "temperature": 1.3},
    "top_p": {"top_p": 0.9},
    "top_p small": {"top_p": 0.05, "min_tokens_to_keep": 3},
    "min_p": {"min_p": 0.05},
    "min_p keep": {"min_p": 0.9, "min_tokens_to_keep": 4},
    "typical_p": {"typical_p": 0.9},
    "typical_p small": {"typical_p": 0.2},
    "epsilon_cutoff": {"epsilon_cutoff": 3e-4},
    "eta_cutoff": {"eta_cutoff": 2e-3, "min_tokens_to_keep": 2},
    "top_h": {"top_h": 0.4},
    "top_h all": {"top_h": 1.0, "temperature": 0.6},
    "common": {"temperature": 0.7, "top_k": 50, "top_p": 0.9},
    "everything": {
        "temperature": 0.8,
        "top_h": 0.9,
        "top_k": 60,
        "top_p": 0.95,
        "min_p": 0.01,
        "typical_p": 0.95,
        "epsilon_cutoff": 1e-3,
        "eta_cutoff": 1e-3,
    },
}


@functools.cache
def _oracle(setting: str, kind: str, vocab_size: int, rows: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Returns transformers' scores before and after its filters, shared by the tests of all backends."""
    logits = make_logits(kind, rows, vocab_size, seed=vocab_size, dtype=dtype)
    knobs = _settings(setting, vocab_size)
    before_filters = processed(logits, unfiltered(knobs))
    return before_filters, processed(logits, knobs)


def _settings(setting: str, vocab_size: int) -> dict[str, Any]:
    keep = SETTINGS[setting].get("min_tokens_to_keep", 1)
    return {**SETTINGS[setting], "min_tokens_to_keep": min(keep, vocab_size)}


@pytest.mark.parametrize("row", HAND_ROWS, ids=[row.fact for row in HAND_ROWS])
def test_hand_checked_row(backend: str, row: HandRow) -> None:
    logits = torch.tensor([row.logits], dtype=torch.float32)
    scores = process_logits(logits, **row.knobs, backend=backend)
    torch.testing.assert_close(
        scores, torch.tensor([row.scores], dtype=torch.float32), rtol=2e-7, atol=0, equal_nan=True
    )


def test_a_temperature_that_does_not_fit(backend: str) -> None:
    """If the best score would exceed float32's range, it becomes 2^100 with its sign."""
    logits = torch.tensor([[1.0, 2.0], [-1.0, -2.0], [0.0, -2.0], [1e-7, 0.0], [1.0, 2.0]])
    temperature = torch.tensor([1e-41, 1e-41, 1e-41, 1e-41, 1.0])
    scores = process_logits(logits, temperature=temperature, backend=backend)
    wanted = torch.tensor([[2.0**99, 2.0**100], [-(2.0**100), -(2.0**101)], [0.0, -math.inf], [1e34, 0.0], [1.0, 2.0]])
    torch.testing.assert_close(scores, wanted, rtol=1e-4, atol=0)


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("vocab_size", VOCAB_SIZES)
def test_against_transformers(backend: str, vocab_size: int, setting: str) -> None:
    rows = 3 if vocab_size < 1000 else 1
    for kind in KINDS:
        for dtype in DTYPES if vocab_size < 1000 else (DTYPES[KINDS.index(kind) % 3],):
            logits = make_logits(kind, rows, vocab_size, seed=vocab_size, dtype=dtype)
            knobs = _settings(setting, vocab_size)
            before_filters, oracle = _oracle(setting, kind, vocab_size, rows, dtype)
            assert_same_scores(process_logits(logits, **knobs, backend=backend), oracle, before_filters, knobs)


@pytest.mark.parametrize("vocab_size", VOCAB_SIZES)
def test_history_and_bans_against_transformers(backend: str, vocab_size: int) -> None:
    rows = 4
    logits = make_logits("spread", rows, vocab_size)
    if vocab_size == 1:
        ngram = {}
    else:
        ngram = {"no_repeat_ngram_size": 2}
    words = (vocab_size + 31) // 32
    mask = torch.randint(-(2**31), 2**31, (rows, words), generator=torch.Generator().manual_seed(1)).to(torch.int32)
    mask[:, 0] |= 1
    shapings: tuple[dict[str, Any], ...] = (
        {"repetition_penalty": 1.3},
        {"repetition_penalty": 0.7, **ngram},
        ngram,
        {"suppress": [vocab_size // 2, vocab_size - 1, vocab_size + 7] if vocab_size > 2 else []},
        {"bias": make_logits("normal", 1, vocab_size, seed=3)[0]},
        {"bias": make_logits("normal", rows, vocab_size, seed=4), "repetition_penalty": 1.1},
        {"token_bitmask": mask},
        {"token_bitmask": mask[0]},
        {"token_bitmask": mask, "repetition_penalty": 1.2, "temperature": 0.7, "top_k": 20, **ngram},
    )
    for shaping in shapings:
        knobs: dict[str, Any] = {**shaping, "input_ids": make_history(rows, 40, vocab_size)}
        expected = processed(logits, knobs)
        torch.testing.assert_close(process_logits(logits, **knobs, backend=backend), expected, rtol=0, atol=0)


@pytest.mark.parametrize("rows", [0, 1, 3, MANY_ROWS])
def test_rows(backend: str, rows: int) -> None:
    knobs: dict[str, Any] = {"temperature": 0.7, "top_k": 20, "top_p": 0.8}
    logits = make_logits("normal", rows, 111)
    before_filters = processed(logits, unfiltered(knobs)) if rows else logits
    scores = process_logits(logits, **knobs, backend=backend)
    assert scores.shape == (rows, 111)
    if rows:
        assert_same_scores(scores, processed(logits, knobs), before_filters, knobs)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("vocab_size", [1, 7, 63, 64, 65, 111, 1000])
def test_strided_rows_give_the_same(backend: str, dtype: torch.dtype, vocab_size: int) -> None:
    logits = make_logits("normal", 5, vocab_size, dtype=dtype)
    knobs: dict[str, Any] = {"top_p": 0.9, "min_p": 0.01}
    expected = process_logits(logits, **knobs, backend=backend)
    assert process_logits(strided_rows(logits), **knobs, backend=backend).equal(expected)
    expanded = process_logits(logits[:1].expand(5, vocab_size), **knobs, backend=backend)
    assert expanded.equal(expected[:1].expand(5, vocab_size))


def test_strided_history_and_tables(backend: str) -> None:
    logits = make_logits("normal", 3, 40)
    history, bias = make_history(3, 9, 40), make_logits("normal", 3, 40, seed=9)
    suppress = torch.tensor([[1, 2], [3, -1], [70, 5]])
    mask = torch.tensor([[-2, 255], [-1, 0], [0x0F0F0F0F, 255]], dtype=torch.int32)
    expected = [
        process_logits(
            logits[r : r + 1],
            repetition_penalty=1.5,
            no_repeat_ngram_size=2,
            input_ids=history[r : r + 1],
            bias=bias[r],
            suppress=suppress[r].tolist(),
            token_bitmask=mask[r],
            backend=backend,
        )
        for r in range(3)
    ]
    scores = process_logits(
        logits,
        repetition_penalty=1.5,
        no_repeat_ngram_size=2,
        input_ids=torch.cat([history, history], 1)[:, :9],
        bias=torch.cat([bias, bias], 1)[:, :40],
        suppress=torch.cat([suppress, suppress], 1)[:, :2],
        token_bitmask=torch.cat([mask, mask], 1)[:, :2],
        backend=backend,
    )
    assert scores.equal(torch.cat(expected))


def test_a_bad_row_leaves_the_others_alone(backend: str) -> None:
    logits = make_logits("normal", 5, 200)
    knobs: dict[str, Any] = {"top_p": 0.9, "temperature": 0.7}
    expected = process_logits(logits, **knobs, backend=backend)
    bad = logits.clone()
    bad[1, 190], bad[3] = math.nan, -math.inf
    scores = process_logits(bad, **knobs, backend=backend)
    assert scores[[0, 2, 4]].equal(expected[[0, 2, 4]])
    torch.testing.assert_close(scores[[1, 3]], bad[[1, 3]], rtol=0, atol=0, equal_nan=True)


FEW_LEFT: list[dict[str, Any]] = [
    {"top_n_sigma": 0.5},
    {"top_n_sigma": 0.1, "min_tokens_to_keep": 2, "top_p": 0.9},
    {"typical_p": 0.5},
    {"typical_p": 0.5, "min_tokens_to_keep": 3},
    {"eta_cutoff": 0.1},
    {"epsilon_cutoff": 0.2, "min_tokens_to_keep": 4},
    {"top_k": 4000},
    {"top_p": 0.5},
    {"min_p": 0.5, "min_tokens_to_keep": 7},
]


@pytest.mark.parametrize("knobs", FEW_LEFT, ids=str)
def test_rows_with_few_tokens_left(backend: str, knobs: dict[str, Any]) -> None:
    """Rows under a grammar: a sample of a few hundred scores finds only -inf."""
    logits = torch.full((3, 5001), -math.inf)
    left = torch.tensor([[1, 70, 4999], [2, 3, 5000], [64, 128, 2500]])
    logits.scatter_(1, left, torch.tensor([[1.0, 2.0, 0.5]] * 3))
    scores = process_logits(logits, **knobs, backend=backend)
    expected = process_logits(logits, **knobs, backend="torch")
    assert_same_scores(scores, expected, logits, knobs)
    assert scores.isfinite().any(dim=-1).all()


def test_out_is_written_and_returned(backend: str) -> None:
    logits = make_logits("normal", 3, 50)
    wide = torch.full((3, 60), 5.0)
    out = wide[:, 4:54]
    assert process_logits(logits, top_k=3, backend=backend, out=out) is out
    assert out.equal(process_logits(logits, top_k=3, backend=backend))
    assert (wide[:, :4] == 5).all() and (wide[:, 54:] == 5).all()


def test_inputs_are_not_modified(backend: str) -> None:
    tensors = {
        "input_ids": make_history(3, 9, 40),
        "bias": make_logits("normal", 3, 40, seed=9),
        "suppress": torch.tensor([1, 2]),
        "token_bitmask": torch.tensor([-2, 255], dtype=torch.int32),
        "temperature": torch.tensor([0.5, 0.0, 1.0]),
        "top_k": torch.tensor([3, 0, 9]),
    }
    for dtype in DTYPES:
        logits = make_logits("normal", 3, 40, dtype=dtype)
        before = {name: tensor.clone() for name, tensor in tensors.items()} | {"logits": logits.clone()}
        process_logits(logits, **tensors, repetition_penalty=1.2, top_p=0.5, top_h=0.5, backend=backend)
        for name, tensor in {**tensors, "logits": logits}.items():
            assert tensor.equal(before[name]), name


def test_logits_that_need_a_gradient(backend: str) -> None:
    logits = make_logits("normal", 2, 30).requires_grad_()
    assert not process_logits(logits, top_k=3, backend=backend).requires_grad
