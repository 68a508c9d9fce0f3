"""beam_finalize: a hand-checked search, then random ancestries against hypotheses as plain lists."""

from __future__ import annotations

import random
import types
from typing import Any

import pytest
import torch

import pygen.reference.beam_finalize as reference
from pygen.ops import BeamState, beam_finalize
from tests.conftest import INT_POISON

PAD = 99


def filled(num_beams: int, prompt: list[list[int]], max_new_tokens: int, **tables: list[list[Any]]) -> BeamState:
    """Returns a state with the given first rows of some tables. Other rows keep what `create` or the poison wrote."""
    state = BeamState.create(torch.tensor(prompt), max_new_tokens, num_beams, pad_token_id=PAD)
    for name, rows in tables.items():
        table = getattr(state, name)
        table[: len(rows)] = torch.tensor(rows, dtype=table.dtype)
    return state


def hand_search() -> BeamState:
    """Two prompts, two beams, three steps of five.

    Prompt 0 has a hypothesis that ended in step 1 and one in step 2. Prompt 1 has only one, from step 0, so its second
    hypothesis is the bare prompt.
    """
    return filled(
        2,
        [[7, 8], [9, 9]],
        5,
        step_tokens=[[10, 11, 20, 21], [12, 13, 22, 23], [14, 15, 24, 25]],
        step_parents=[[0, 0, 2, 2], [1, 0, 3, 2], [1, 1, 2, 3]],
        finished_scores=[[-0.5, -1.0], [-2.0, -1e9]],
        finished_steps=[[2, 1], [0, -1]],
        finished_tokens=[[50, 51], [52, -1]],
        finished_parents=[[1, 0], [2, -1]],
    )


def check_hand_search(backend: str) -> None:
    # Beam 1 of step 1 (13) came from beam 0 of step 0 (10); beam 0 of step 0 is 10 as well.
    output = beam_finalize(hand_search(), 2, backend=backend)
    assert output.sequences.tolist() == [
        [7, 8, 10, 13, 50],
        [7, 8, 10, 51, PAD],
        [9, 9, 52, PAD, PAD],
        [9, 9, PAD, PAD, PAD],
    ]
    assert output.beam_indices.tolist() == [[0, 0, 1], [0, 0, -1], [2, -1, -1], [-1, -1, -1]]
    assert output.sequences_scores.tolist() == [-0.5, -1.0, -2.0, -1e9]
    best = beam_finalize(hand_search(), backend=backend)
    assert best.sequences.tolist() == [[7, 8, 10, 13, 50], [9, 9, 52, PAD, PAD]]
    assert best.beam_indices.tolist() == [[0, 0, 1], [2, -1, -1]]


def test_a_search_by_hand(backend: str) -> None:
    check_hand_search(backend)


def test_types_and_independence_of_the_state(backend: str) -> None:
    state = hand_search()
    output = beam_finalize(state, 2, backend=backend)
    assert [tensor.dtype for tensor in output] == [torch.int64, torch.float32, torch.int32]
    assert all(tensor.is_contiguous() for tensor in output)
    wanted = [tensor.clone() for tensor in output]
    for tensor in vars(state).values():
        if isinstance(tensor, torch.Tensor):
            tensor.zero_()
    assert all(tensor.equal(want) for tensor, want in zip(output, wanted, strict=True))


def test_nothing_was_generated(backend: str) -> None:
    output = beam_finalize(filled(3, [[1, 2], [3, 4]], 4), 1, backend=backend)
    assert output.sequences.tolist() == [[1, 2], [3, 4]] and output.beam_indices.shape == (2, 0)
    empty = beam_finalize(BeamState.create(torch.empty(0, 2, dtype=torch.int64), 4, 3), 2, backend=backend)
    assert empty.sequences.shape == (0, 2) and empty.sequences_scores.shape == (0,)


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("num_beams", [1, 2, 5])
@pytest.mark.parametrize("num_steps", [1, 7, 60])
def test_random_ancestries(backend: str, batch_size: int, num_beams: int, num_steps: int) -> None:
    """The op must find the tokens and parents that beams keep as lists."""
    draw = random.Random(num_steps * 100 + num_beams * 10 + batch_size)
    rows, places = batch_size * num_beams, range(num_beams)
    prompt = [[draw.randrange(50) for _ in range(4)] for _ in range(batch_size)]
    tokens, parents = [], []
    finished: list[list[Any]] = [[] for _ in range(batch_size)]
    beams: list[Any] = [((), ())] * rows
    for step in range(num_steps):
        grown_from = [row // num_beams * num_beams + draw.randrange(num_beams) for row in range(rows)]
        for b in range(batch_size):
            for _ in range(draw.randrange(3)):
                row, token = b * num_beams + draw.randrange(num_beams), draw.randrange(50)
                finished[b].append((draw.random(), step, token, row, (*beams[row][0], token), (*beams[row][1], row)))
        tokens.append([draw.randrange(50) for _ in range(rows)])
        parents.append(grown_from)
        beams = [((*beams[p][0], t), (*beams[p][1], p)) for t, p in zip(tokens[-1], grown_from, strict=True)]
    none = (-1e9, -1, -1, -1, (), ())
    best = [(sorted(of_prompt, reverse=True) + [none] * num_beams)[:num_beams] for of_prompt in finished]
    state = filled(
        num_beams,
        prompt,
        num_steps + 2,
        step_tokens=tokens,
        step_parents=parents,
        finished_scores=[[hypothesis[0] for hypothesis in of_prompt] for of_prompt in best],
        finished_steps=[[hypothesis[1] for hypothesis in of_prompt] for of_prompt in best],
        finished_tokens=[[hypothesis[2] for hypothesis in of_prompt] for of_prompt in best],
        finished_parents=[[hypothesis[3] for hypothesis in of_prompt] for of_prompt in best],
    )
    for k in {1, num_beams}:
        output = beam_finalize(state, k, backend=backend)
        returned = [(prompt[b], best[b][i]) for b in range(batch_size) for i in places[:k]]
        width = max(len(hypothesis[4]) for _, hypothesis in returned)
        assert output.sequences.tolist() == [[*start, *h[4], *[PAD] * (width - len(h[4]))] for start, h in returned]
        assert output.beam_indices.tolist() == [[*h[5], *[-1] * (width - len(h[5]))] for _, h in returned]
        assert output.sequences_scores.equal(torch.tensor([h[0] for _, h in returned]))


@pytest.mark.parametrize(
    ("table", "place", "beam", "where"),
    [
        ("finished_parents", (0, 0), 4, "beam 4 in step 2 of prompt 0"),
        ("finished_parents", (1, 0), -1, "beam -1 in step 0 of prompt 1"),
        ("step_parents", (1, 1), 2, "beam 2 in step 1 of prompt 0"),
        ("step_parents", (0, 0), 2**31 - 1, "beam 2147483647 in step 0 of prompt 0"),
    ],
)
def test_a_walk_that_leaves_its_prompt(backend: str, table: str, place: tuple[int, int], beam: int, where: str) -> None:
    state = hand_search()
    getattr(state, table)[place] = beam
    with pytest.raises(ValueError) as raised:
        beam_finalize(state, 2, backend=backend)
    assert str(raised.value) == f"`state` must have parents within their prompt, got {where}"


def test_tables_outside_returned_hypotheses_may_hold_anything(backend: str) -> None:
    state = hand_search()
    state.step_tokens[2:], state.step_parents[2:] = INT_POISON, -1
    state.step_parents[1, 0], state.finished_parents[1, 1] = 77, 77
    beam_finalize(state, 2, backend=backend)


# Possible faults of a kernel; the hand-checked search must detect each.
FAULTS = {
    "the parent's token of the same step": ("state.step_tokens[step - 1, safe]", "state.step_tokens[step, safe]"),
    "a stale parent": ("state.step_parents[step - 1, safe]", "state.step_parents[step, safe]"),
    "every walk starts at the last step": ("walking = step <= steps", "walking = step <= steps.max()"),
    "a running beam's last token": ("torch.where(walking, token, tokens[:, step])", "state.step_tokens[step, beam]"),
    "prompts side by side": (".repeat_interleave(num_return_sequences, dim=0)", ".repeat(num_return_sequences, 1)"),
    "the first beams' prompts": ("[:: state.num_beams, :", "[: state.batch_size, :"),
    "zeros for pads": ("state.pad_token_id", "0"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_seen(monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    with open(reference.__file__) as file:
        source = file.read()
    old, new = FAULTS[fault]
    assert source.count(old) == 1
    wrong = types.ModuleType("wrong")
    exec(source.replace(old, new), wrong.__dict__)
    monkeypatch.setattr(reference, "beam_finalize", wrong.beam_finalize)
    with pytest.raises(AssertionError):
        check_hand_search("torch")
