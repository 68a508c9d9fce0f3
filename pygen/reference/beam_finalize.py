"""The definition of `beam_finalize` in plain torch: all hypotheses walk back together."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from pygen.ops._outputs import BeamOutput

if TYPE_CHECKING:
    from pygen.ops._beam_state import BeamState


def beam_finalize(state: BeamState, num_return_sequences: int = 1) -> BeamOutput:
    """See `pygen.ops.beam_finalize`, which checks the arguments."""
    steps, token, beam, scores = (
        table[:, :num_return_sequences].flatten()
        for table in (state.finished_steps, state.finished_tokens, state.finished_parents, state.finished_scores)
    )
    prompts = state.token_ids[:: state.num_beams, : state.prompt_length]
    longest = max(steps.tolist(), default=-1) + 1
    tokens = token.new_full((len(steps), longest), state.pad_token_id)
    beam_indices = beam.new_full((len(steps), longest), -1)
    for step in reversed(range(longest)):
        walking = step <= steps
        tokens[:, step] = torch.where(walking, token, tokens[:, step])
        beam_indices[:, step] = torch.where(walking, beam, beam_indices[:, step])
        if step > 0:
            # The op finds a broken walk in the beam indices.
            safe = beam.clamp(0, state.rows - 1)
            token = torch.where(walking, state.step_tokens[step - 1, safe], token)
            beam = torch.where(walking, state.step_parents[step - 1, safe], beam)
    sequences = torch.cat([prompts.repeat_interleave(num_return_sequences, dim=0), tokens], dim=1)
    return BeamOutput(sequences, scores, beam_indices)
