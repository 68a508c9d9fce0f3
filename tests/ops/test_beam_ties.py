"""beam_step where everything ties: the order of candidates, and the rows that the new beams take."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pygen.ops import BeamState, beam_step
from tests.helpers.beams import copied, difference

STEP = 3


def tied_state(num_beams: int, slope: int, generator: torch.Generator) -> BeamState:
    """Returns a state whose beams have few different scores and whose rows have few different shared lengths."""
    state = BeamState.create(torch.zeros(1, 1, dtype=torch.int64), STEP + 2, num_beams, eos_token_ids=[1])
    state.slots[0] = torch.randperm(num_beams, generator=generator)
    state.token_ids[:, 1 : 1 + STEP] = torch.randint(9, (num_beams, STEP), generator=generator)
    state.running_scores[0] = -(torch.arange(num_beams) * slope // 4).float()
    shared = torch.randint(STEP, (num_beams, num_beams), generator=generator).triu(1)
    state.shared[0] = (shared + shared.T).int()
    return state


@pytest.mark.parametrize(
    ("num_beams", "vocab_size", "draws"),
    [
        (2, 7, False),
        (5, 300, True),
        (33, 9, False),
        (64, 150, False),
        (64, 40, True),
        (65, 20, False),
        (130, 10, True),
    ],
)
def test_ties_go_to_the_lower_index(kernel_backend: str, num_beams: int, vocab_size: int, draws: bool) -> None:
    """Whole numbers leave nothing to rounding. A steep slope gives one beam all the children, no slope few to each."""
    generator = torch.Generator().manual_seed(num_beams)
    shape = (num_beams, vocab_size)
    for slope in (0, 1, 60):
        state = tied_state(num_beams, slope, generator)
        log_probs = -torch.randint(12, shape, generator=generator).float()
        knobs: dict[str, Any] = {"step": STEP, "normalized": True}
        if draws:
            noise = torch.tensor([0.5, 1.0, 2.0])[torch.randint(3, shape, generator=generator)]
            knobs |= {"do_sample": True, "noise": noise, "top_k": 0 if slope == 1 else 9, "sort_draws": slope == 0}
        states = [copied(state), copied(state)]
        expected = beam_step(log_probs, states[0], **knobs, backend="torch")
        actual = beam_step(log_probs, states[1], **knobs, backend=kernel_backend)
        assert difference((states[1], actual), (states[0], expected)) == "", slope
