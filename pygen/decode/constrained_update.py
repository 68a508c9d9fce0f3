"""How the choices of a constrained search enter a `BeamState`: finished hypotheses, running beams and their rows.

`beam_step` does the same for its own candidates; here nothing that joins the running beams has ended.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pygen.ops import BeamState, BeamStepOutput
from pygen.ops._beam_state import NEVER_WINS

NO_TOKEN = -1


class Chosen(NamedTuple):
    """At most n continuations of every prompt, best first; NO_TOKEN with score -inf where there are fewer."""

    token_ids: Tensor  # (B, n) int64
    parents: Tensor  # (B, n) int64, a rank in 0 ... n - 1
    scores: Tensor  # (B, n) float32, sums that include the parent's

    @property
    def exist(self) -> Tensor:
        return self.token_ids != NO_TOKEN


def sequences_of(chosen: Chosen, state: BeamState, step: int) -> Tensor:
    """(B * n, prompt_length + step + 1) int64: the texts, with the pad token where there is no continuation."""
    rows = state.slots.gather(1, chosen.parents.clamp(min=0)).flatten()
    last = chosen.token_ids.masked_fill(~chosen.exist, state.pad_token_id)
    return torch.cat([state.tokens(step)[rows], last.view(-1, 1)], dim=1)


def add_finished(
    state: BeamState, b: int, chosen: Chosen, step: int, normaliser: Tensor, *, stops_when_full: bool
) -> None:
    """Continuations of prompt b join its finished hypotheses if they rank among the first n, by sum / normaliser."""
    n, joins = state.num_beams, chosen.exist[b]
    scores = chosen.scores[b] / normaliser
    is_full = stops_when_full and bool(state.finished[b].all())
    for barred in (is_full, not bool(state.open[b]), ~joins):
        scores = scores + NEVER_WINS * torch.as_tensor(barred, device=scores.device)
    order = torch.cat([state.finished_scores[b], scores]).sort(descending=True, stable=True).indices[:n]
    for pool, new in (
        (state.finished_scores, scores),
        (state.finished, joins),
        (state.finished_steps, torch.full_like(chosen.token_ids[b], step)),
        (state.finished_tokens, chosen.token_ids[b]),
        (state.finished_parents, chosen.parents[b] + b * n),
    ):
        pool[b] = torch.cat([pool[b], new.to(pool.dtype)])[order]


def set_running(state: BeamState, b: int, chosen: Chosen, step: int) -> Tensor:
    """The continuations of prompt b become its beams; returns their parents (n,). Without enough continuations, beams
    of score -inf feed the pad token."""
    n = state.num_beams
    order = chosen.scores[b].sort(descending=True, stable=True).indices
    exist, beams = chosen.exist[b][order], slice(b * n, (b + 1) * n)
    parents = torch.where(exist, chosen.parents[b][order], torch.arange(n, device=exist.device))
    state.running_scores[b] = chosen.scores[b][order]
    state.step_tokens[step, beams] = torch.where(exist, chosen.token_ids[b][order], state.pad_token_id)
    state.step_parents[step, beams] = (parents + b * n).to(torch.int32)
    return parents


def close_beaten(state: BeamState, b: int, normaliser: Tensor) -> None:
    """Prompt b is over once its best running beam beats no finished hypothesis."""
    attainable = state.running_scores[b, 0] / normaliser
    worst = torch.where(state.finished[b], state.finished_scores[b].min(), NEVER_WINS)
    state.open[b] &= bool((attainable > worst).any())


def move_rows(state: BeamState, b: int, parents: Tensor, step: int, output: BeamStepOutput) -> None:
    """Finds a row for every new beam of prompt b and appends its token.

    The first child of a beam stays in its row. Every other child takes a row whose beam left no child: the one that
    shares most with the parent's row, so that only the rest is copied.
    """
    n, first = state.num_beams, b * state.num_beams
    slots, shared = (state.slots[b] - first).tolist(), state.shared[b]
    sources = [slots[parent] for parent in parents.tolist()]
    rows = [source if source not in sources[:beam] else None for beam, source in enumerate(sources)]
    free = [row for row in range(n) if row not in rows]
    for beam, source in enumerate(sources):
        if rows[beam] is not None:
            continue
        target = max(free, key=lambda row: (int(shared[source, row]), -row))
        free.remove(target)
        rows[beam] = target
        common = int(shared[source, target])
        output.source_rows[first + target], output.shared[first + target] = first + source, common
        copied = slice(state.prompt_length + common, state.prompt_length + step)
        for table in (state.token_ids, state.history):
            table[first + target, copied] = table[first + source, copied]
        shared[target] = shared[source]
        shared[:, target] = shared[target]
        shared[target, target] = 0
        shared[source, target] = shared[target, source] = step
    state.slots[b] = torch.tensor(rows, device=state.slots.device) + first
    tokens = state.step_tokens[step, first : first + n]
    for table in (state.token_ids, state.history):
        table[state.slots[b], state.prompt_length + step] = tokens
    output.token_ids[state.slots[b]] = tokens
