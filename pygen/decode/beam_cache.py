"""Aligns the cache that a beam search leaves with the sequences that it found."""

from __future__ import annotations

import torch
from torch import Tensor

from pygen.models.adapter import ModelAdapter
from pygen.ops import BeamOutput
from pygen.plan.beam_logprobs import Beams


def align_cache(model: ModelAdapter, state: Beams, best: BeamOutput, steps: int) -> None:
    """Row r of the model's cache becomes that of row r of the sequences, as far as every row is known.

    The cache holds the texts of the beams that ran to the end. A hypothesis that ended earlier shares a prefix with
    one of them. The cache is cut to the shortest of these prefixes, and never holds the last token of a sequence,
    which no forward has read. A later call reads the missing positions again.
    """
    if steps == 0:
        return
    rows, kept = _common(state, best, steps - 1)
    model.align_cache(rows, steps - 1 - kept)


def _common(state: Beams, best: BeamOutput, seen: int) -> tuple[Tensor, int]:
    """The row that shares most of the `seen` generated tokens with each sequence, and how many tokens every sequence
    shares with its row."""
    start, (batch_size, num_beams) = state.prompt_length, state.slots.shape
    lengths = (best.beam_indices >= 0).sum(1)
    width = min(seen, best.beam_indices.shape[1])
    returned = len(lengths) // batch_size
    cached = state.tokens(seen)[:, start : start + width].reshape(batch_size, 1, num_beams, width)
    wanted = best.sequences[:, start : start + width].reshape(batch_size, returned, 1, width)
    shared, beams = (cached == wanted).long().cumprod(3).sum(3).max(2)
    first_rows = torch.arange(0, batch_size * num_beams, num_beams, device=beams.device)
    kept = shared.flatten().minimum(lengths - 1).clamp(min=0)
    return (first_rows[:, None] + beams).flatten(), int(kept.min())
