"""Prepared ops equal fresh calls, with live tables, copied knobs and reused outputs."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch

from pygen import rng
from pygen.ops import prepare_process_logits, prepare_sample, process_logits, sample
from tests.helpers.logits import make_history, make_logits, strided_rows

KNOBS: dict[str, Any] = {"temperature": 0.7, "top_k": 50, "top_p": 0.9, "repetition_penalty": 1.2}


@pytest.mark.parametrize("rows", [0, 1, 4])
def test_prepared_calls_equal_fresh_calls(backend: str, rows: int) -> None:
    history = make_history(rows, 10, 300)
    prepared = prepare_sample(make_logits("normal", rows, 300), **KNOBS, input_ids=history, seed=5, backend=backend)
    process = prepare_process_logits(make_logits("normal", rows, 300), **KNOBS, input_ids=history, backend=backend)
    for step in range(6):
        logits = make_logits("normal", rows, 300, seed=step)
        result = prepared(logits if step % 2 else strided_rows(logits), step=step, length=step)
        fresh = {**KNOBS, "input_ids": history[:, :step]}
        assert result is prepared.out
        assert result.token_ids.equal(sample(logits, **fresh, seed=5, step=step, backend=backend).token_ids)
        assert process(logits, length=step).equal(process_logits(logits, **fresh, backend=backend))
        assert process.out is process(logits)


def test_noise_is_fresh_for_every_step(backend: str) -> None:
    logits = make_logits("normal", 1, 1000)
    prepared = prepare_sample(logits, seed=5, backend=backend)
    tokens = [prepared(logits, step=step).token_ids.item() for step in range(20)]
    assert len(set(tokens)) > 10
    assert prepared(logits, step=3).token_ids.item() == tokens[3]


def test_a_missing_seed_is_drawn_once(backend: str) -> None:
    logits = make_logits("normal", 2, 1000)
    prepared = prepare_sample(logits, backend=backend)
    first = prepared(logits).token_ids.clone()
    assert prepared(logits).token_ids.equal(first)


def test_tables_are_read_again_and_knobs_are_copies(backend: str) -> None:
    logits = make_logits("normal", 2, 40)
    bias, mask, suppress = torch.zeros(40), torch.full((2,), -1, dtype=torch.int32), torch.tensor([-1])
    steps, top_k = torch.zeros(2, dtype=torch.int64), torch.tensor([40, 40])
    tables: dict[str, Any] = {"bias": bias, "token_bitmask": mask, "suppress": suppress}
    process = prepare_process_logits(logits, **tables, top_k=top_k, backend=backend)
    draw = prepare_sample(logits, step=steps, seed=1, backend=backend)
    before, token = process(logits).clone(), draw(logits).token_ids.clone()
    top_k.fill_(1)
    assert process(logits).equal(before)
    bias[3], suppress[0] = 1.0, 5
    mask[0] = -3
    expected = process_logits(logits, bias=bias, token_bitmask=mask, suppress=[5], backend=backend)
    assert process(logits).equal(expected)
    steps.fill_(9)
    assert draw(logits).token_ids.equal(sample(logits, seed=1, step=9, backend=backend).token_ids)
    steps.fill_(0)
    assert draw(logits).token_ids.equal(token)


@pytest.mark.parametrize("source", [{"seed": 3}, {"rng": "torch"}])
def test_a_prepared_op_keeps_its_tensors(backend: str, source: dict[str, Any]) -> None:
    """The caller drops every tensor, and other tensors may reuse the memory."""

    def knobs() -> dict[str, Any]:
        return {
            "temperature": torch.linspace(0.5, 1, 64),
            "top_k": torch.full((64,), 30),
            "bias": make_logits("normal", 1, 100, seed=4)[0],
            "suppress": list(range(0, 100, 7)),
            "token_bitmask": torch.full((4,), 0x7F7F7F7F, dtype=torch.int32),
            "input_ids": make_history(64, 9, 100),
            "prompt_lengths": torch.full((64,), 2),
            "presence_penalty": torch.full((64,), 0.5),
        }

    logits = make_logits("normal", 64, 100)
    prepared = prepare_sample(logits, **knobs(), **source, backend=backend)
    process = prepare_process_logits(logits, **knobs(), backend=backend)
    gc.collect()
    garbage = [torch.full((size,), -7.0) for size in (4, 50, 64, 100, 128, 1152) for _ in range(20)]
    torch.manual_seed(1)
    tokens = prepared(logits).token_ids.clone()
    torch.manual_seed(1)
    assert tokens.equal(sample(logits, **knobs(), **source, backend=backend).token_ids)
    assert process(logits).equal(process_logits(logits, **knobs(), backend=backend))
    assert len(garbage) == 120


def test_what_a_call_checks(backend: str) -> None:
    history = make_history(2, 4, 10)
    logits = make_logits("normal", 2, 10)
    prepared = prepare_sample(logits, input_ids=history, seed=1, backend=backend)
    before = prepared(logits).token_ids.clone()
    prepared.out.token_ids.fill_(-3)
    wrong: list[tuple[Any, dict[str, Any], type[Exception], str]] = [
        ([1.0], {}, TypeError, "`logits` must be a torch.Tensor, got list"),
        (logits.double(), {}, TypeError, "`logits` must be float32, got float64"),
        (logits[:1], {}, ValueError, "`logits` must have shape (rows, vocab_size) = (2, 10), got (1, 10)"),
        (logits[0], {}, ValueError, "`logits` must have shape (rows, vocab_size) = (2, 10), got (10,)"),
        (logits.to("meta"), {}, ValueError, "`logits` must be on cpu as in preparation, got meta"),
        (
            logits.t().contiguous().t(),
            {},
            ValueError,
            "`logits` must have a contiguous last dimension, got strides (1, 2)",
        ),
        (logits, {"step": -1}, ValueError, "`step` must be >= 0, got -1"),
        (logits, {"step": 2**32}, ValueError, "`step` must be in [0, 4294967295], got 4294967296"),
        (logits, {"step": 1.0}, TypeError, "`step` must be an int, got float"),
        (logits, {"step": True}, TypeError, "`step` must be an int, got bool"),
        (logits, {"length": 5}, ValueError, "`length` must be in [0, 4], got 5"),
        (logits, {"length": -1}, ValueError, "`length` must be >= 0, got -1"),
        (logits, {"length": 2.0}, TypeError, "`length` must be an int, got float"),
    ]
    for argument, keywords, error, message in wrong:
        with pytest.raises(error) as raised:
            prepared(argument, **keywords)
        assert str(raised.value) == message
        assert (prepared.out.token_ids == -3).all()
    assert prepared(torch.nn.Parameter(logits)).token_ids.equal(before)


def test_one_column_may_have_any_stride(backend: str) -> None:
    prepared = prepare_sample(torch.zeros(3, 1), seed=1, backend=backend)
    assert prepared(torch.zeros(3, 5)[:, :1]).token_ids.tolist() == [0, 0, 0]
    assert prepared(torch.zeros(1, 3).t()).token_ids.tolist() == [0, 0, 0]


def test_seeds_are_those_of_rng(backend: str) -> None:
    logits = make_logits("normal", 3, 50)
    prepared = prepare_sample(logits, seed=rng.row_seeds(2**64 - 1, 3), backend=backend)
    assert prepared(logits).token_ids.equal(sample(logits, seed=2**64 - 1, backend=backend).token_ids)
