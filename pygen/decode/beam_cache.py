"""The cache that a beam search leaves, made that of the sequences it found."""

from __future__ import annotations

import torch
from torch import Tensor

from pygen.decode.diverse_beam import DiverseBeamState
from pygen.models.adapter import ModelAdapter
from pygen.ops import BeamOutput, BeamState


def align_cache(model: ModelAdapter, state: BeamState | DiverseBeamState, best: BeamOutput, steps: int) -> None:
    """Row r of the model's cache becomes that of row r of the sequences, as far as every row is known.

    The cache holds the texts of the beams that ran to the end. A hypothesis that ended earlier shares a beginning with
    one of them. The cache is cut to the shortest beginning, and at least by the last token of each sequence, which no
    forward has read: positions that a later call reads again.
    """
    if steps == 0:
        return
    rows, kept = _common(state, best, steps - 1)
    model.align_cache(rows, steps - 1 - kept)


def _common(state: BeamState | DiverseBeamState, best: BeamOutput, seen: int) -> tuple[Tensor, int]:
    """For every sequence the row with which it has most of the `seen` generated tokens in common, and how many of them
    all sequences have."""
    start, (batch_size, num_beams) = state.prompt_length, state.slots.shape
    lengths = (best.beam_indices >= 0).sum(1)
    width = min(seen, best.beam_indices.shape[1])
    returned = len(lengths) // batch_size
    held = state.tokens(seen)[:, start : start + width].reshape(batch_size, 1, num_beams, width)
    wanted = best.sequences[:, start : start + width].reshape(batch_size, returned, 1, width)
    shared, places = (held == wanted).long().cumprod(3).sum(3).max(2)
    first_rows = torch.arange(0, batch_size * num_beams, num_beams, device=places.device)
    kept = shared.flatten().minimum(lengths - 1).clamp(min=0)
    return (first_rows[:, None] + places).flatten(), int(kept.min())
