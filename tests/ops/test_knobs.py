"""All knobs together: hypothesis against the reference, and rows with different knobs against one call per row."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from pygen import rng
from pygen.knobs import KNOBS
from pygen.ops import KeptTokens, process_logits, sample
from tests.helpers.draws import assert_same_tokens
from tests.helpers.extra_backends import EMULATED
from tests.helpers.kept_sets import assert_same_scores, knobs_of_row, unfiltered
from tests.helpers.logits import KINDS, make_history, make_logits

# The fixture only selects the backend and its instruction set, which no example changes.
bounded = settings(max_examples=15 if EMULATED else 150, suppress_health_check=[HealthCheck.function_scoped_fixture])


def fractions(low: float, high: float) -> st.SearchStrategy[float]:
    return st.floats(low, high)


FILTERS = {
    "do_sample": st.sampled_from([True, True, True, False]),
    "temperature": st.sampled_from([0.0, 0.3, 0.7, 1.0, 1.0, 2.5]),
    "top_k": st.sampled_from([0, 0, 1, 2, 5, 50, 10**6]),
    "top_p": st.sampled_from([1.0, 1.0, 0.0]) | fractions(0.0, 1.0),
    "min_p": st.sampled_from([0.0, 0.0, 1.0]) | fractions(1e-4, 1.0),
    "typical_p": st.just(1.0) | fractions(1e-3, 1.0),
    "epsilon_cutoff": st.just(0.0) | fractions(1e-5, 0.9),
    "eta_cutoff": st.just(0.0) | fractions(1e-5, 0.9),
    "top_n_sigma": st.sampled_from([0.0, 0.0, 1.0]) | fractions(1e-3, 4.0),
    "top_h": st.sampled_from([0.0, 0.0, 1.0]) | fractions(1e-3, 1.0),
    "min_tokens_to_keep": st.sampled_from([1, 1, 1, 2, 5, 1000]),
}
PENALTIES = {
    "repetition_penalty": st.sampled_from([1.0, 1.0, 1.3, 0.5]),
    "presence_penalty": st.sampled_from([0.0, 0.0, 0.7, -1.5]),
    "frequency_penalty": st.sampled_from([0.0, 0.0, 0.3, -0.4]),
    "no_repeat_ngram_size": st.sampled_from([0, 0, 1, 2, 3]),
    "prompt_lengths": st.sampled_from([0, 3, 20]),
}
INTEGERS = {"prompt_lengths", *(knob.name for knob in KNOBS if knob.type is int)}


@st.composite
def calls(draw: st.DrawFn) -> tuple[Tensor, dict[str, Any]]:
    """Draws logits and per-row knobs of every kind."""
    rows = draw(st.integers(1, 4))
    vocab_size = draw(st.sampled_from([1, 2, 7, 33, 64, 65, 130, 700, 5000]))
    seed = draw(st.integers(0, 10**6))
    dtype = draw(st.sampled_from([torch.float32, torch.float32, torch.float16, torch.bfloat16]))
    logits = make_logits(draw(st.sampled_from(KINDS)), rows, vocab_size, seed=seed, dtype=dtype)
    knobs: dict[str, Any] = {}
    for name, values in {**FILTERS, **PENALTIES}.items():
        column = draw(st.lists(values, min_size=rows, max_size=rows))
        kind = torch.bool if name == "do_sample" else torch.int64 if name in INTEGERS else torch.float32
        knobs[name] = torch.tensor(column, dtype=kind)
    history = make_history(rows, draw(st.integers(0, 12)), vocab_size, seed=seed)
    length = history.shape[1]
    padding = make_logits("normal", rows, length, seed=seed) < -1.3
    knobs["input_ids"] = history.masked_fill(padding, -1)
    if draw(st.booleans()):
        knobs["bias"] = make_logits("normal", draw(st.sampled_from([1, rows])), vocab_size, seed=seed + 1)
        knobs["bias"] = knobs["bias"][0] if len(knobs["bias"]) != rows else knobs["bias"]
    if draw(st.booleans()):
        knobs["suppress"] = draw(st.lists(st.integers(-2, vocab_size + 2), max_size=4))
    if draw(st.booleans()):
        words = st.integers(-(2**31), 2**31 - 1)
        width = (vocab_size + 31) // 32
        knobs["token_bitmask"] = torch.tensor(draw(st.lists(words, min_size=width, max_size=width)), dtype=torch.int32)
    return logits, knobs


@bounded
@given(call=calls())
def test_kernel_equals_reference(kernel_backend: str, call: tuple[Tensor, dict[str, Any]]) -> None:
    logits, knobs = call
    rows, vocab_size = logits.shape
    expected = process_logits(logits, **knobs, backend="torch")
    before_filters = process_logits(logits, **unfiltered(knobs), backend="torch")
    scores = process_logits(logits, **knobs, backend=kernel_backend)
    assert_same_scores(scores, expected, before_filters, knobs)

    noise = rng.philox_exponential(rng.row_seeds(8, rows), torch.zeros(rows, dtype=torch.int64), vocab_size)
    result = sample(logits, **knobs, seed=8, logprobs=2, backend=kernel_backend)
    wanted = sample(logits, **knobs, noise=noise, logprobs=2, backend="torch")
    assert result.status.equal(wanted.status)
    assert ((result.token_ids >= 0) & (result.token_ids < vocab_size)).all()
    if scores.equal(expected):
        drawn = knobs["do_sample"] & (knobs["temperature"] > 0) & (result.status == 0)
        assert result.token_ids[~drawn].equal(wanted.token_ids[~drawn])
        picked = drawn.nonzero()[:, 0]
        assert_same_tokens(result.token_ids[picked], wanted.token_ids[picked], scores[picked], noise[picked])
        assert result.top_logprobs is not None and wanted.top_logprobs is not None
        assert result.top_logprobs.token_ids.equal(wanted.top_logprobs.token_ids)
        torch.testing.assert_close(
            result.top_logprobs.logprobs, wanted.top_logprobs.logprobs, rtol=1e-5, atol=2e-6, equal_nan=True
        )
        try:
            kept = sample(logits, **knobs, seed=8, output_kept=True, kept_limit=90, backend=kernel_backend)
        except ValueError:
            return  # no filter acts
        expected_kept = sample(logits, **knobs, noise=noise, output_kept=True, kept_limit=90, backend="torch").kept
        assert isinstance(kept.kept, KeptTokens) and isinstance(expected_kept, KeptTokens)
        assert kept.kept.token_ids.equal(expected_kept.token_ids) and kept.kept.offsets.equal(expected_kept.offsets)
        assert kept.kept.complete.equal(expected_kept.complete) and kept.token_ids.equal(result.token_ids)
        torch.testing.assert_close(kept.kept.log_mass, expected_kept.log_mass, rtol=1e-6, atol=2e-6)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(call=calls())
def test_rows_of_different_knobs_equal_single_calls(backend: str, call: tuple[Tensor, dict[str, Any]]) -> None:
    logits, knobs = call
    rows = len(logits)
    scores = process_logits(logits, **knobs, backend=backend)
    result = sample(logits, **knobs, seed=3, step=5, backend=backend)
    for row in range(rows):
        alone = {**knobs_of_row(knobs, row), "input_ids": knobs["input_ids"][row : row + 1]}
        alone["top_h"] = alone["top_h"] or None
        if knobs.get("bias") is not None and knobs["bias"].dim() == 2:
            alone["bias"] = knobs["bias"][row]
        one = logits[row : row + 1]
        expected = process_logits(one, **alone, backend=backend)
        torch.testing.assert_close(scores[row : row + 1], expected, rtol=0, atol=0, equal_nan=True)
        token = sample(one, **alone, seed=[rng.row_seed(3, row)], step=5, backend=backend).token_ids
        assert token.tolist() == [result.token_ids[row]]


def test_int32_and_half_knobs_are_taken(backend: str) -> None:
    logits = make_logits("normal", 2, 30)
    expected = process_logits(logits, top_k=torch.tensor([3, 5]), top_p=torch.tensor([0.5, 0.75]), backend=backend)
    top_k, top_p = torch.tensor([3, 5], dtype=torch.int32), torch.tensor([0.5, 0.75], dtype=torch.float16)
    assert process_logits(logits, top_k=top_k, top_p=top_p, backend=backend).equal(expected)


def test_strided_knobs_are_taken(backend: str) -> None:
    logits = make_logits("normal", 3, 30)
    top_k = torch.tensor([[1, 9], [2, 9], [3, 9]])[:, 0]
    assert (process_logits(logits, top_k=top_k, backend=backend) > -torch.inf).sum(1).tolist() == [1, 2, 3]
