"""sample with a DecodeState: tokens appended, end of sequence, pads, counts, and the history that penalties see."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from pygen.loops.state import DecodeState
from pygen.ops import prepare_process_logits, prepare_sample, process_logits, sample
from tests.helpers.logits import make_history, make_logits

ROWS, VOCAB_SIZE, PROMPT, STEPS = 4, 60, 5, 6


def make_state(**keywords: Any) -> DecodeState:
    return DecodeState.create(make_history(ROWS, PROMPT, VOCAB_SIZE), STEPS, **keywords)


def one_hot(token_ids: list[int]) -> Tensor:
    logits = torch.zeros(len(token_ids), VOCAB_SIZE)
    logits[torch.arange(len(token_ids)), torch.tensor(token_ids)] = 50.0
    return logits


def test_rows_finish_at_any_end_token_and_are_padded(backend: str) -> None:
    state = make_state(eos_token_ids=[7, 9], pad_token_id=59)
    prompt = state.token_ids[:, :PROMPT].clone()
    prepared = prepare_sample(one_hot([0] * ROWS), seed=1, state=state, backend=backend)
    wanted = [[1, 2, 3, 4], [7, 2, 3, 4], [1, 9, 3, 4], [7, 7, 7, 4]]
    appended = [[1, 2, 3, 4], [7, 2, 3, 4], [59, 9, 3, 4], [59, 59, 7, 4]]
    unfinished, generated = [4, 3, 2, 1], [[1, 1, 1, 1], [2, 2, 2, 2], [2, 3, 3, 3], [2, 3, 4, 4]]
    for step in range(4):
        out = prepared(one_hot(wanted[step]), step=step)
        assert out.token_ids.tolist() == appended[step]
        assert state.column(step).tolist() == appended[step]
        assert state.unfinished.tolist() == [unfinished[step]]
        assert state.num_generated.tolist() == generated[step]
    assert state.finished.tolist() == [True, True, True, False]
    assert state.token_ids[:, :PROMPT].equal(prompt)
    assert (state.token_ids[:, PROMPT + 4 :] == -0x5A5A5A5A5A5A5A5A).all()


def test_without_end_tokens_no_row_finishes(backend: str) -> None:
    state = make_state()
    prepared = prepare_sample(one_hot([0] * ROWS), do_sample=False, state=state, backend=backend)
    for step in range(STEPS):
        prepared(one_hot([0] * ROWS), step=step)
    assert state.unfinished.tolist() == [ROWS] and not state.finished.any()
    assert state.num_generated.tolist() == [STEPS] * ROWS


@pytest.mark.parametrize("source", [{"seed": 3}, {"rng": "torch"}, {"do_sample": False}])
@pytest.mark.parametrize("masked", [False, True])
def test_penalties_see_what_was_appended(backend: str, masked: bool, source: dict[str, Any]) -> None:
    visible = (torch.arange(PROMPT) > 1).long().expand(ROWS, PROMPT) if masked else None
    state = make_state(visible=visible)
    knobs: dict[str, Any] = {"repetition_penalty": 1.8, "presence_penalty": 0.5, "frequency_penalty": 0.5, "top_k": 9}
    knobs = {**knobs, "no_repeat_ngram_size": 2}
    example = make_logits("normal", ROWS, VOCAB_SIZE)
    prepared = prepare_sample(example, **knobs, **source, state=state, backend=backend)
    process = prepare_process_logits(example, **knobs, state=state, backend=backend)
    history = state.history[:, :PROMPT].clone()
    assert masked == bool((history == -1).any())
    for step in range(STEPS):
        logits = make_logits("normal", ROWS, VOCAB_SIZE, seed=step)
        fresh = {**knobs, "input_ids": history, "prompt_lengths": PROMPT}
        assert process(logits, step=step).equal(process_logits(logits, **fresh, backend=backend))
        torch.manual_seed(step)
        tokens = prepared(logits, step=step).token_ids
        torch.manual_seed(step)
        assert tokens.equal(sample(logits, **fresh, **source, step=step, backend=backend).token_ids)
        history = torch.cat([history, tokens[:, None]], dim=1)
        assert state.history[:, : PROMPT + step + 1].equal(history)
        assert state.column(step).equal(tokens)


def test_a_step_without_a_column_is_refused(backend: str) -> None:
    state = make_state()
    prepared = prepare_sample(one_hot([0] * ROWS), seed=1, state=state, backend=backend)
    before = state.token_ids.clone()
    with pytest.raises(ValueError, match=r"`step` must be in \[0, 5\], got 6"):
        prepared(one_hot([0] * ROWS), step=STEPS)
    assert state.token_ids.equal(before) and state.num_generated.sum() == 0


def test_a_bad_row_is_reported_and_appended_as_it_is(backend: str) -> None:
    state = make_state(eos_token_ids=[7])
    logits = one_hot([1, 2, 3, 4])
    logits[1, 0] = torch.nan
    logits[2] = -torch.inf
    out = prepare_sample(logits, seed=1, state=state, backend=backend)(logits)
    assert out.status.tolist() == [0, 1, 2, 0]
    assert state.column(0).tolist() == [1, 2, 0, 4]
