"""sample with a DecodeState: tokens appended, end of sequence, pads, counts, and the history that penalties see."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from pygen.ops import DecodeState, prepare_process_logits, prepare_sample, process_logits, sample
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


def stepping(state: DecodeState) -> DecodeState:
    """Returns `state` with a step counter, which every call advances."""
    return dataclasses.replace(state, steps=torch.zeros(state.rows, dtype=torch.int64))


SHAPED: dict[str, Any] = {"repetition_penalty": 1.8, "frequency_penalty": 0.5, "no_repeat_ngram_size": 2, "top_k": 20}


@pytest.mark.parametrize("source", [{"seed": 3}, {"rng": "torch"}, {"do_sample": False}])
@pytest.mark.parametrize("masked", [False, True])
def test_steps_of_the_state_stand_for_those_of_the_call(backend: str, masked: bool, source: dict[str, Any]) -> None:
    visible = (torch.arange(PROMPT) > 1).long().expand(ROWS, PROMPT) if masked else None
    given = make_state(visible=visible, eos_token_ids=[7], pad_token_id=59)
    counted = stepping(make_state(visible=visible, eos_token_ids=[7], pad_token_id=59))
    example = make_logits("normal", ROWS, VOCAB_SIZE)
    by_call = prepare_sample(example, **SHAPED, **source, state=given, backend=backend)
    by_state = prepare_sample(example, **SHAPED, **source, state=counted, backend=backend)
    shaped = prepare_process_logits(example, **SHAPED, state=given, backend=backend)
    shaped_by_state = prepare_process_logits(example, **SHAPED, state=counted, backend=backend)
    for step in range(STEPS):
        logits = make_logits("normal", ROWS, VOCAB_SIZE, seed=step)
        assert shaped_by_state(logits).equal(shaped(logits, step=step))
        tokens = []
        for prepared, number in ((by_call, step), (by_state, 0)):
            torch.manual_seed(step)
            tokens.append(prepared(logits, step=number).token_ids.clone())
        assert tokens[0].equal(tokens[1])
        assert counted.steps is not None and counted.steps.tolist() == [step + 1] * ROWS
    for name in ("token_ids", "history", "num_generated", "finished", "unfinished"):
        assert getattr(given, name).equal(getattr(counted, name)), name


def test_every_row_is_at_its_own_step(backend: str) -> None:
    steps = [3, 0, 2, 1]
    state = stepping(make_state(pad_token_id=59))
    assert state.steps is not None
    state.steps.copy_(torch.tensor(steps))
    state.token_ids[:, PROMPT:] = make_history(ROWS, STEPS, VOCAB_SIZE, seed=4)
    before = state.token_ids.clone()
    logits = make_logits("normal", ROWS, VOCAB_SIZE)
    tokens = prepare_sample(logits, **SHAPED, seed=3, state=state, backend=backend)(logits).token_ids
    for row, step in enumerate(steps):
        alone = {**SHAPED, "input_ids": before[:, : PROMPT + step], "prompt_lengths": PROMPT}
        assert tokens[row] == sample(logits, **alone, seed=3, step=step, backend=backend).token_ids[row]
        before[row, PROMPT + step] = tokens[row]
    assert state.token_ids.equal(before) and state.steps.tolist() == [step + 1 for step in steps]


@pytest.mark.parametrize("name", ["cpu", "torch"])
def test_a_generator_state_replaces_the_generator(name: str) -> None:
    generator, twin = torch.Generator().manual_seed(5), torch.Generator().manual_seed(5)
    state = dataclasses.replace(make_state(), generator_state=generator.get_state())
    logits = make_logits("normal", ROWS, VOCAB_SIZE)
    in_memory = prepare_sample(logits, rng="torch", generator=generator, state=state, backend=name)
    usual = prepare_sample(logits, rng="torch", generator=twin, state=make_state(), backend=name)
    for step in range(STEPS):
        assert in_memory(logits, step=step).token_ids.equal(usual(logits, step=step).token_ids)
    assert state.generator_state is not None and state.generator_state.equal(twin.get_state())
    assert generator.get_state().equal(torch.Generator().manual_seed(5).get_state())


@pytest.mark.parametrize(
    ("field", "value", "error"),
    [
        ("steps", torch.zeros(ROWS, dtype=torch.int32), TypeError),
        ("steps", torch.zeros(ROWS + 1, dtype=torch.int64), ValueError),
        ("generator_state", torch.zeros(2, dtype=torch.int64), TypeError),
        ("generator_state", torch.zeros(2, dtype=torch.uint8), ValueError),
    ],
)
def test_wrong_tensors_of_the_state(field: str, value: Tensor, error: type[Exception]) -> None:
    changes: dict[str, Any] = {field: value}
    with pytest.raises(error, match=f"`state.{field}` must"):
        prepare_sample(one_hot([0] * ROWS), state=dataclasses.replace(make_state(), **changes))
