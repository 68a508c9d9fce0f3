"""Constrained choices enter the beams as candidates do in the reference of `beam_step`."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from pygen.decode import constrained_update as ours
from pygen.ops import BeamState, BeamStepOutput
from pygen.ops._ties import lowest_argmax
from pygen.reference import beam_step as theirs
from pygen.reference.sample import argmax_lowest
from tests.ops.test_beam_step import advanced_state

STEP, VOCAB_SIZE = 1, 9


def chosen_of(state: BeamState, generator: torch.Generator) -> ours.Chosen:
    """Draws continuations with ties; some prompts have too few."""
    shape = state.slots.shape
    count = torch.randint(1, shape[1] + 1, (shape[0], 1), generator=generator)
    missing = torch.arange(shape[1]) >= count
    token_ids = torch.randint(VOCAB_SIZE, shape, generator=generator).masked_fill(missing, ours.NO_TOKEN)
    parents = torch.randint(shape[1], shape, generator=generator).masked_fill(missing, ours.NO_TOKEN)
    scores = -torch.randint(4, shape, generator=generator).float().sort(dim=1).values
    return ours.Chosen(token_ids, parents, scores.masked_fill(missing, -math.inf))


def output_of(state: BeamState) -> BeamStepOutput:
    rows = torch.arange(state.rows)
    return BeamStepOutput(torch.zeros_like(rows), rows.clone(), torch.full_like(rows, STEP), torch.zeros_like(rows))


def same(left: BeamState, right: BeamState) -> None:
    for field in dataclasses.fields(BeamState):
        mine, other = getattr(left, field.name), getattr(right, field.name)
        if isinstance(mine, Tensor):
            written = STEP + 1 if field.name in ("step_tokens", "step_parents") else None
            mine, other = mine[:written], other[:written]
            if field.name in ("token_ids", "history"):
                mine, other = (table[:, : left.prompt_length + STEP + 1] for table in (mine, other))
            assert torch.equal(mine, other), field.name


@pytest.mark.parametrize("num_beams", [2, 3, 5])
@pytest.mark.parametrize("stops_when_full", [False, True])
def test_two_steps_as_the_reference_takes_them(num_beams: int, stops_when_full: bool) -> None:
    for seed in range(10):
        generator = torch.Generator().manual_seed(seed)
        left, right = (advanced_state(num_beams, VOCAB_SIZE, batch_size=2, seed=seed) for _ in range(2))
        shared = torch.randint(STEP + 1, left.shared.shape, generator=generator, dtype=torch.int32)
        for state in (left, right):
            state.shared.copy_(shared)
        normaliser = torch.tensor(2.0)
        for _ in range(2):
            finishing, running = chosen_of(left, generator), chosen_of(left, generator)
            assert torch.equal(
                ours.sequences_of(running, left, STEP),
                theirs.candidate_sequences(theirs.Candidates(*running), right, STEP),
            )
            mine, other = output_of(left), output_of(right)
            for b in range(2):
                ours.add_finished(left, b, finishing, STEP, normaliser, stops_when_full=stops_when_full)
                parents = ours.set_running(left, b, running, STEP)
                ours.close_beaten(left, b, normaliser)
                ours.move_rows(left, b, parents, STEP, mine)

                candidates, going = theirs.Candidates(*finishing), theirs.Candidates(*running)
                joins = candidates.exist[b]
                theirs.update_finished(right, b, candidates, joins, STEP, normaliser, stops_when_full)
                survivors = theirs.update_running(right, b, going, torch.zeros_like(joins), STEP)
                theirs.update_open(right, b, normaliser)
                theirs.move_rows(right, b, survivors, STEP, other)
            same(left, right)
            assert all(torch.equal(*pair) for pair in zip(mine, other, strict=True))


def test_ties_go_to_the_lowest_index() -> None:
    values = torch.randint(3, (50, 7), generator=torch.Generator().manual_seed(0)).float()
    values[0] = -math.inf
    assert torch.equal(lowest_argmax(values), argmax_lowest(values))
    assert lowest_argmax(torch.tensor([[1.0, 3.0, 3.0], [2.0, 2.0, 2.0]])).tolist() == [1, 0]
