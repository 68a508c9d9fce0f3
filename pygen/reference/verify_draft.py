"""The definition of `verify_draft` in plain torch, row by row and position by position."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from pygen import rng as noise_sources
from pygen.ops._outputs import DraftOutput, RowStatus
from pygen.reference.process_logits import IntKnob, Knob, fitting_temperature, row_status
from pygen.reference.sample import race_winners, seeds_and_steps


def verify_draft(
    target_logits: Tensor,
    draft_token_ids: Tensor,
    draft_logits: Tensor | None = None,
    *,
    draft_lengths: IntKnob | None = None,
    do_sample: bool | Tensor = True,
    temperature: Knob = 1.0,
    seed: int | Sequence[int] | Tensor | None = None,
    step: int | Tensor = 0,
    uniforms: Tensor | None = None,
    noise: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> DraftOutput:
    """See `pygen.ops.verify_draft`, which checks the arguments."""
    rows, positions, vocab_size = target_logits.shape
    device = target_logits.device
    needs_seed = noise is None and do_sample is not False
    seeds, steps = seeds_and_steps(seed if needs_seed else 0, step, generator, rows, device)
    drawn = torch.as_tensor(do_sample, device=device).expand(rows)
    temperatures = torch.as_tensor(temperature, dtype=torch.float32, device=device).expand(rows)
    lengths = torch.as_tensor(positions - 1 if draft_lengths is None else draft_lengths, device=device).expand(rows)

    accepted = torch.zeros(rows, dtype=torch.int64, device=device)
    token_ids = torch.zeros(rows, dtype=torch.int64, device=device)
    status = torch.zeros(rows, dtype=torch.int32, device=device)
    for r in range(rows):
        for i in range(positions):
            draft = int(draft_token_ids[r, i]) if i < lengths[r].clamp(max=positions - 1) else -1
            if not 0 <= draft < vocab_size:
                draft = -1
            x = target_logits[r, i].float()
            y = draft_logits[r, i].float() if draft_logits is not None and draft >= 0 else None
            if not drawn[r] or temperatures[r] == 0:
                kept, token, fault = judge_greedy(x, draft)
            else:
                at, where = seeds[r : r + 1], steps[r : r + 1] + i
                if noise is not None and uniforms is not None:
                    exponential = noise[r : r + 1]
                    uniform = uniforms[r, i] if draft >= 0 else torch.zeros((), device="cpu")
                else:
                    exponential = noise_sources.philox_exponential(at, where, vocab_size)
                    ids = torch.tensor([max(draft, 0)], device=device)
                    uniform = noise_sources.philox_uniform(at, where, ids, noise_sources.ACCEPTANCE_STREAM)
                kept, token, fault = judge(x, y, draft, temperatures[r], uniform, exponential)
            if not kept:
                accepted[r], token_ids[r], status[r] = i, token, fault
                break
    return DraftOutput(accepted, token_ids, status)


def judge_greedy(x: Tensor, draft: int) -> tuple[bool, int, int]:
    """Does the same as `judge`, for a greedy row."""
    best, status = _best(x), row_status(x)
    return status == RowStatus.OK and draft == best, best, status


def judge(
    x: Tensor, y: Tensor | None, draft: int, temperature: Tensor, uniform: Tensor, exponential: Tensor
) -> tuple[bool, int, int]:
    """Returns whether a position accepts its draft, the token that replaces or follows it, and the status.

    x: (vocab_size,) scores of the target. y: those of the drafts, or None if they are certain. draft: -1 for none.
    """
    status = row_status(x)
    if y is not None:
        status = status or row_status(y)
    if status != RowStatus.OK:
        return False, _best(x), status
    # Logarithms keep probabilities that would underflow as floats.
    p = log_probabilities(x, temperature)
    if draft < 0:
        return False, _draw(p, exponential), status
    if y is None:
        q = torch.full_like(p, -math.inf)
        q[draft] = 0.0
    else:
        q = log_probabilities(y, temperature)
    if p[draft] > -math.inf and uniform < (p[draft] - q[draft]).exp():
        return True, draft, status
    # ln(p - q) = ln p + ln(1 - q / p)
    rest = torch.where(q < p, p + torch.log1p(-(q - p).exp()), -math.inf)
    return False, _draw(rest if rest.isfinite().any() else p, exponential), status


def log_probabilities(x: Tensor, temperature: Tensor) -> Tensor:
    return torch.log_softmax((x / fitting_temperature(temperature, x)).double(), dim=0)


def _best(x: Tensor) -> int:
    """Returns the lowest id of the largest score that is not NaN; 0 if all are."""
    numbers = x[~x.isnan()]
    return int((x == numbers.max()).nonzero()[0]) if len(numbers) > 0 else 0


def _draw(log_weights: Tensor, exponential: Tensor) -> int:
    return int(race_winners(log_weights[None], exponential))
