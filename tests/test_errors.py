"""Wrong arguments of `sample`, `process_logits` and their prepared calls: the error's type and exact message.

A refused call changes nothing.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pygen.backends import BackendError
from pygen.ops import DecodeState, SampleOutput, prepare_process_logits, prepare_sample, process_logits, sample
from tests.helpers.wrong_arguments import (
    IDS,
    LOGITS,
    META,
    OUT,
    ROWS,
    SAMPLE,
    SHAPING,
    VOCAB_SIZE,
    Wrong,
    names,
    tensor,
)

PROCESS: list[Wrong] = [
    ({"out": [0.0]}, TypeError, "`out` must be a torch.Tensor, got list"),
    ({"out": LOGITS.half()}, TypeError, "`out` must be float32, got float16"),
    ({"out": LOGITS[:1]}, ValueError, "`out` must have shape (rows, vocab_size) = (2, 40), got (1, 40)"),
    ({"out": LOGITS.to(META)}, ValueError, "`out` must be on cpu like `logits`, got meta"),
    ({"out": LOGITS}, ValueError, "`out` must share no memory with `logits`, got overlapping tensors"),
    (
        {"out": torch.zeros(1, VOCAB_SIZE).expand(ROWS, VOCAB_SIZE)},
        ValueError,
        "`out` must have rows that share no memory, got strides (0, 1) for shape (2, 40)",
    ),
]


def state_with(**changes: Any) -> DecodeState:
    state = DecodeState.create(IDS, 3)
    for name, value in changes.items():
        setattr(state, name, value)
    return state


STATE: list[Wrong] = [
    (
        {"state": state_with(), "input_ids": IDS},
        ValueError,
        "`input_ids` must be None where `state` gives the sequences, got a tensor",
    ),
    (
        {"state": DecodeState.create(IDS[:1], 3)},
        ValueError,
        "`state.token_ids` must have shape (rows, capacity) = (2, 8), got (1, 8)",
    ),
    (
        {"state": state_with(history=IDS)},
        ValueError,
        "`state.history` must have shape (rows, capacity) = (2, 8), got (2, 5)",
    ),
    ({"state": state_with(finished=tensor(0, 0))}, TypeError, "`state.finished` must be bool, got int64"),
    ({"state": state_with(prompt_length=9)}, ValueError, "`state.prompt_length` must be in [0, 8], got 9"),
    ({"state": state_with(eos_token_ids=tensor(1.0))}, TypeError, "`state.eos_token_ids` must be int64, got float32"),
]


@pytest.mark.parametrize(("keywords", "error", "message"), SHAPING + SAMPLE, ids=names(SHAPING + SAMPLE))
def test_sample(keywords: dict[str, Any], error: type[Exception], message: str) -> None:
    generator = torch.Generator().manual_seed(3)
    state, default_state = generator.get_state(), torch.get_rng_state()
    out = SampleOutput(OUT.token_ids.clone(), None, None, OUT.status.clone())
    arguments = {"logits": LOGITS, "generator": generator, "out": out, **keywords}
    with pytest.raises(error) as raised:
        sample(arguments.pop("logits"), **arguments)
    assert type(raised.value) is error
    assert str(raised.value) == message
    assert generator.get_state().equal(state) and torch.get_rng_state().equal(default_state)
    assert out.token_ids.equal(OUT.token_ids) and out.status.equal(OUT.status)
    assert (LOGITS == 0).all()


@pytest.mark.parametrize(("keywords", "error", "message"), SHAPING + PROCESS, ids=names(SHAPING + PROCESS))
def test_process_logits(keywords: dict[str, Any], error: type[Exception], message: str) -> None:
    out = torch.full((ROWS, VOCAB_SIZE), 5.0)
    arguments = {"logits": LOGITS, "out": out, **keywords}
    with pytest.raises(error) as raised:
        process_logits(arguments.pop("logits"), **arguments)
    assert type(raised.value) is error
    assert str(raised.value) == message
    assert (out == 5).all() and (LOGITS == 0).all()


@pytest.mark.parametrize(("keywords", "error", "message"), STATE, ids=names(STATE))
@pytest.mark.parametrize("prepare", [prepare_sample, prepare_process_logits])
def test_state(prepare: Any, keywords: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error) as raised:
        prepare(LOGITS, **keywords)
    assert str(raised.value) == message


def test_a_step_tensor_with_a_state() -> None:
    with pytest.raises(ValueError, match="`step` must be None where `state` has a column for every step, got a tensor"):
        prepare_sample(LOGITS, state=state_with(), step=tensor(0, 0))


@pytest.mark.parametrize("backend", ["cuda", "triton"])
def test_a_backend_that_cannot_run(backend: str) -> None:
    generator = torch.Generator().manual_seed(3)
    state = generator.get_state()
    with pytest.raises(BackendError, match=f"`sample`: backend '{backend}' cannot run on cpu; cpu: can run; cuda: "):
        sample(LOGITS, backend=backend, generator=generator)
    assert generator.get_state().equal(state)
