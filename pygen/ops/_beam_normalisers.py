"""Length penalties of a beam search as a table by step, which every backend of `beam_step` reads."""

from __future__ import annotations

import torch
from torch import Tensor

from pygen.ops._beam_state import BeamState


def normalisers_of(state: BeamState, length_penalty: float, early_stopping: bool | str) -> Tensor:
    """Returns the divisors of scores after every step, (2, T) float32.

    Row 0 is for hypotheses that end with the step. Row 1 is for the best running beam, at its length or at the most
    favourable one.
    """
    of_lengths = [float(length) ** length_penalty for length in range(1, state.step_capacity + 1)]
    favourable = early_stopping == "never" and length_penalty > 0.0
    longest = float(max(state.max_new_tokens, 1)) ** length_penalty
    of_running = [longest] * len(of_lengths) if favourable else of_lengths
    return torch.tensor([of_lengths, of_running], dtype=torch.float32, device=state.token_ids.device)
