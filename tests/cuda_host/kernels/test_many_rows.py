"""Many rows, which one kernel scans and another draws, equal the same rows in small batches, which one kernel does."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from pygen import rng
from pygen.ops import DecodeState, SampleOutput, prepare_sample, sample
from tests.helpers.logits import make_history, make_logits, strided_rows

FEW = 16
KNOBS: dict[str, dict[str, Any]] = {
    "top-k and a penalty": {"top_k": 20, "top_p": 0.9, "repetition_penalty": 1.3, "frequency_penalty": 0.2},
    "a nucleus": {"top_p": 0.8, "no_repeat_ngram_size": 2},
    "greedy": {"do_sample": False, "presence_penalty": 0.5},
    # Too many survivors for a list: the second kernel reads the row again.
    "min_p": {"min_p": 1e-6, "repetition_penalty": 1.3},
}


def rows_of_all_kinds(rows: int, vocab_size: int, dtype: torch.dtype) -> Tensor:
    logits = make_logits("normal", rows, vocab_size, dtype=dtype)
    logits[3, 7], logits[4, 7], logits[5] = math.nan, math.inf, -math.inf
    logits[6, : vocab_size // 2] = -math.inf
    return strided_rows(logits)


def tables(rows: int, vocab_size: int) -> dict[str, Any]:
    """Knobs of every row: temperatures, of which a third are greedy, histories with ids outside, and bans."""
    history = make_history(rows, 40, vocab_size)
    history[:, 0], history[:, 1] = -1, vocab_size
    history[0, -3:] = vocab_size - 1
    temperature = torch.linspace(0.5, 1.5, rows)
    suppress = torch.arange(rows)[:, None] % vocab_size
    sampled = torch.arange(rows) % 3 > 0
    return {"input_ids": history, "temperature": temperature, "suppress": suppress, "do_sample": sampled}


def logprobs_of(output: SampleOutput) -> tuple[Tensor, Tensor]:
    """The log-probabilities of the tokens, and the ids of the best ones."""
    assert output.logprobs is not None
    assert output.top_logprobs is not None
    return output.logprobs, output.top_logprobs.token_ids


def assert_equal(ours: SampleOutput, parts: list[SampleOutput]) -> None:
    assert ours.token_ids.equal(torch.cat([part.token_ids for part in parts]))
    assert ours.status.equal(torch.cat([part.status for part in parts]))
    logprobs, best = logprobs_of(ours)
    wanted_logprobs, wanted_best = (torch.cat(tensors) for tensors in zip(*map(logprobs_of, parts), strict=True))
    torch.testing.assert_close(logprobs, wanted_logprobs, rtol=0, atol=1e-5, equal_nan=True)
    assert best.equal(wanted_best)


@pytest.mark.parametrize("case", KNOBS)
@pytest.mark.parametrize(("rows", "vocab_size", "dtype"), [(32, 5003, torch.bfloat16), (64, 15, torch.float32)])
def test_rows_equal_those_of_small_batches(
    backend: str, rows: int, vocab_size: int, dtype: torch.dtype, case: str
) -> None:
    logits, seeds = rows_of_all_kinds(rows, vocab_size, dtype), rng.row_seeds(5, rows)
    own = {**tables(rows, vocab_size), **KNOBS[case]}

    def of_rows(first: int, count: int) -> SampleOutput:
        part = slice(first, first + count)
        knobs: dict[str, Any] = {
            name: value[part] if isinstance(value, Tensor) else value for name, value in own.items()
        }
        return sample(logits[part], seed=seeds[part], logprobs=3, **knobs, backend=backend)

    assert_equal(of_rows(0, rows), [of_rows(first, FEW) for first in range(0, rows, FEW)])


def test_rows_that_finish(backend: str) -> None:
    """The second kernel extends the histories that the next step's kernels read, while others have finished."""
    rows, vocab_size, steps = 33, 60, 5
    knobs: dict[str, Any] = {"seed": 2, "top_k": 8, "repetition_penalty": 1.5, "no_repeat_ngram_size": 1}
    states = []
    for name in (backend, "cpu"):
        counted = torch.zeros(rows, dtype=torch.int64)
        state = DecodeState.create(make_history(rows, 4, vocab_size), steps, eos_token_ids=[7, 9, 11], pad_token_id=3)
        state = dataclasses.replace(state, steps=counted)
        prepared = prepare_sample(torch.zeros(rows, vocab_size), state=state, **knobs, backend=name)
        for step in range(steps):
            prepared(make_logits("normal", rows, vocab_size, seed=step))
        states.append(state)
    assert states[1].finished.any() and not states[1].finished.all()
    for field in ("token_ids", "finished", "num_generated", "unfinished", "steps"):
        assert getattr(states[0], field).equal(getattr(states[1], field)), field
