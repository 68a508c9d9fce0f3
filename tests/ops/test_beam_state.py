"""beam_step with step counter, limit, normalisers and noise in device memory equals a call with them as arguments."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from pygen import rng
from pygen.ops import BeamState, BeamStepOutput, beam_step, prepare_beam_step
from pygen.ops.beam_step import PreparedBeamStep
from tests.helpers.beams import copied, difference
from tests.helpers.extra_backends import EMULATED
from tests.helpers.logits import make_history, make_logits

BATCH, NUM_BEAMS, VOCAB_SIZE, PROMPT, STEPS = 2, 3, 40, 3, 5
ROWS = BATCH * NUM_BEAMS
# Fields that a search changes, besides its texts and the tables of its steps.
SEARCH = (
    "slots", "shared", "running_scores", "finished_scores", "finished", "finished_steps", "finished_tokens",
    "finished_parents", "open", "unfinished",
)  # fmt: skip
SHAPED: dict[str, Any] = {"repetition_penalty": 1.5, "frequency_penalty": 0.5, "no_repeat_ngram_size": 1}
SOURCES: dict[str, dict[str, Any]] = {
    "search": {},
    "philox": {"do_sample": True, "seed": 3, "top_k": 20, "min_tokens_to_keep": 2},
    "torch": {"do_sample": True, "rng": "torch"},
}


def make_state(seed: int = 0, *, capacity: int = STEPS, **fields: Any) -> BeamState:
    """Returns a state in which token 7 ends a text and the mask hides the first position of the prompt."""
    prompts = make_history(BATCH, PROMPT, VOCAB_SIZE, seed=seed)
    visible = (torch.arange(PROMPT) > 0).long().expand(BATCH, PROMPT)
    state = BeamState.create(prompts, capacity, NUM_BEAMS, eos_token_ids=[7], visible=visible)
    return dataclasses.replace(state, **fields)


def counting(limit: int | None, *, capacity: int) -> BeamState:
    steps = torch.zeros(ROWS, dtype=torch.int64)
    return make_state(capacity=capacity, steps=steps, limit=None if limit is None else torch.tensor([limit]))


def logits_of(step: int, seed: int = 0) -> Tensor:
    logits = make_logits("normal", ROWS, VOCAB_SIZE, seed=100 * seed + step)
    logits[:, 7] += 1.0
    return logits


def assert_same(counted: BeamState, wanted: BeamState, outputs: list[BeamStepOutput], step: int) -> None:
    for name in SEARCH:
        assert getattr(counted, name).equal(getattr(wanted, name)), f"{name} after step {step}"
    for tables in ("token_ids", "history"):
        known = (getattr(state, tables)[:, : PROMPT + step + 1] for state in (counted, wanted))
        assert torch.equal(*known), f"{tables} after step {step}"
    for tables in ("step_tokens", "step_parents"):
        assert torch.equal(*(getattr(state, tables)[: step + 1] for state in (counted, wanted))), tables
    for name, one, other in zip(BeamStepOutput._fields, *outputs, strict=True):
        assert one.equal(other), f"{name} of step {step}"


def compare_searches(
    by_state: PreparedBeamStep, by_call: PreparedBeamStep, states: tuple[BeamState, BeamState]
) -> None:
    """Runs both searches to the end and compares every step, torch's generator included.

    A step after the end must change nothing.
    """
    counted, wanted = states
    assert counted.steps is not None
    for step in range(wanted.max_new_tokens):
        outputs = []
        for prepared, number in ((by_state, 0), (by_call, step)):
            torch.manual_seed(step)
            outputs.append(prepared(logits_of(step), step=number))
        assert_same(counted, wanted, outputs, step)
        assert counted.steps.tolist() == [step + 1] * ROWS
        if wanted.unfinished == 0:
            break
    assert wanted.unfinished.tolist() == [0]
    before = copied(counted)
    out = by_state(logits_of(step + 1))
    assert out.token_ids.equal(by_call.out.token_ids) and out.source_rows.tolist() == list(range(ROWS))
    assert out.shared.tolist() == [step + 1] * ROWS and out.status.tolist() == [0] * ROWS
    assert difference((counted, out), (before, out)) == ""


@pytest.mark.parametrize("early_stopping", [False, True, "never"])
@pytest.mark.parametrize("source", SOURCES)
def test_a_search_that_counts_its_steps(backend: str, source: str, early_stopping: bool | str) -> None:
    """A limit in the state replaces `max_new_tokens`."""
    cases = [(1.3, STEPS, STEPS + 2), (0.0, STEPS, STEPS), (-1.0, None, STEPS)]
    for length_penalty, limit, capacity in cases[:1] if EMULATED else cases:
        knobs = {**SHAPED, **SOURCES[source], "length_penalty": length_penalty, "early_stopping": early_stopping}
        wanted, counted = make_state(), counting(limit, capacity=capacity)
        by_call, by_state = (
            prepare_beam_step(logits_of(0), state, **knobs, backend=backend) for state in (wanted, counted)
        )
        by_state.normalisers[:, :STEPS] = by_call.normalisers
        compare_searches(by_state, by_call, (counted, wanted))


def test_one_op_serves_search_after_search(backend: str) -> None:
    """Every call reads prompts, limit, normalisers and seeds again."""
    counted = counting(STEPS, capacity=STEPS)
    sampling: dict[str, Any] = {**SHAPED, "do_sample": True, "temperature": 0.8}
    by_state = prepare_beam_step(logits_of(0), counted, **sampling, seed=[0] * ROWS, backend=backend)
    assert by_state.noise is not None and counted.limit is not None and counted.steps is not None
    searches = [(1, 4, 1.3, False), (2, 3, 0.5, "never"), (3, 5, -1.0, False)]
    for seed, limit, length_penalty, early_stopping in searches[:2] if EMULATED else searches:
        wanted = make_state(seed, capacity=limit)
        stopping: dict[str, Any] = {"length_penalty": length_penalty, "early_stopping": early_stopping}
        by_call = prepare_beam_step(logits_of(0), wanted, **sampling, **stopping, seed=seed, backend=backend)
        for name in SEARCH:
            getattr(counted, name).copy_(getattr(wanted, name))
        for name in ("token_ids", "history"):
            getattr(counted, name)[:, :PROMPT] = getattr(wanted, name)[:, :PROMPT]
        counted.steps.zero_()
        counted.limit.fill_(limit)
        by_state.noise.seeds.copy_(rng.row_seeds(seed, ROWS))
        by_state.normalisers[:, :limit] = by_call.normalisers
        compare_searches(by_state, by_call, (counted, wanted))


def test_normalisers() -> None:
    def of(length_penalty: float, early_stopping: bool | str) -> list[list[float]]:
        stopping: dict[str, Any] = {"length_penalty": length_penalty, "early_stopping": early_stopping}
        prepared = prepare_beam_step(logits_of(0), make_state(capacity=3), **stopping)
        assert prepared.normalisers.dtype is torch.float32
        return prepared.normalisers.tolist()

    assert of(2.0, False) == of(2.0, True) == [[1, 4, 9], [1, 4, 9]]
    assert of(2.0, "never") == [[1, 4, 9], [9, 9, 9]]
    assert of(0.0, "never") == [[1, 1, 1], [1, 1, 1]]
    assert of(-1.0, "never") == torch.tensor([[1, 1 / 2, 1 / 3]] * 2).tolist()


@pytest.mark.parametrize("name", ["cpu", "torch"])
def test_a_generator_state_replaces_the_generator(name: str) -> None:
    generator, twin = torch.Generator().manual_seed(5), torch.Generator().manual_seed(5)
    state = make_state(generator_state=generator.get_state())
    draws: dict[str, Any] = {"do_sample": True, "rng": "torch", "backend": name}
    in_memory = prepare_beam_step(logits_of(0), state, **draws, generator=generator)
    usual = prepare_beam_step(logits_of(0), make_state(), **draws, generator=twin)
    for step in range(STEPS):
        assert in_memory(logits_of(step), step=step).token_ids.equal(usual(logits_of(step), step=step).token_ids)
    assert state.generator_state is not None and state.generator_state.equal(twin.get_state())
    assert generator.get_state().equal(torch.Generator().manual_seed(5).get_state())


def test_out_is_written_and_returned(backend: str) -> None:
    wanted = beam_step(logits_of(0), make_state(), backend=backend)
    out = BeamStepOutput(*(torch.full_like(tensor, -9) for tensor in wanted))
    assert beam_step(logits_of(0), make_state(), out=out, backend=backend) is out
    assert all(one.equal(other) for one, other in zip(out, wanted, strict=True))


def int64(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.int64)


@pytest.mark.parametrize(
    ("field", "value", "error"),
    [
        ("steps", torch.zeros(ROWS, dtype=torch.int32), TypeError),
        ("steps", int64(ROWS + 1), ValueError),
        ("steps", int64(2 * ROWS)[::2], ValueError),
        ("steps", int64(ROWS).to("meta"), ValueError),
        ("limit", torch.zeros(1), TypeError),
        ("limit", int64(), ValueError),
        ("limit", int64(1).to("meta"), ValueError),
        ("generator_state", int64(2), TypeError),
        ("generator_state", torch.zeros(2, dtype=torch.uint8), ValueError),
    ],
)
def test_wrong_tensors_of_the_state(field: str, value: Tensor, error: type[Exception]) -> None:
    changes: dict[str, Any] = {field: value}
    with pytest.raises(error, match=f"`state.{field}` must"):
        prepare_beam_step(logits_of(0), make_state(**changes))


@pytest.mark.parametrize(
    ("field", "value", "error"),
    [
        ("token_ids", torch.zeros(ROWS), TypeError),
        ("source_rows", int64(ROWS - 1), ValueError),
        ("shared", int64(ROWS).to("meta"), ValueError),
        ("status", int64(ROWS), TypeError),
    ],
)
def test_wrong_tensors_of_the_output(field: str, value: Tensor, error: type[Exception]) -> None:
    out = beam_step(logits_of(0), make_state())._replace(**{field: value})
    with pytest.raises(error, match=f"`out.{field}` must"):
        prepare_beam_step(logits_of(0), make_state(), out=out)


def test_refused_arguments() -> None:
    with pytest.raises(TypeError, match="`out` must be a BeamStepOutput, got tuple"):
        beam_step(logits_of(0), make_state(), out=(int64(ROWS),))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="`stopping_criteria` must be None where the state counts the steps, got func"):
        beam_step(logits_of(0), counting(None, capacity=STEPS), stopping_criteria=lambda sequences: True)
