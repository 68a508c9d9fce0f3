"""`beam_step` in plain torch: scores, candidates, finished hypotheses, running beams and their rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from pygen.knobs import ShapingKnobs
from pygen.ops._beam_normalisers import normalisers_of
from pygen.ops._beam_state import NEVER_WINS, BeamState
from pygen.ops._outputs import BeamStepOutput
from pygen.reference.process_logits import ALL_MASKED, OK, row_status, shape_rows
from pygen.reference.sample import exponential_noise

if TYPE_CHECKING:
    from typing_extensions import Unpack

NONE = -1


class Candidates(NamedTuple):
    """The K best continuations of every prompt, best first. A missing one has id NONE and score -inf."""

    token_ids: Tensor  # (B, K) int64
    parents: Tensor  # (B, K) int64, a rank in 0 ... n - 1
    scores: Tensor  # (B, K) float32, sums that include the parent's

    @property
    def exist(self) -> Tensor:
        return self.token_ids != NONE


def beam_step(
    logits: Tensor,
    state: BeamState,
    *,
    step: int = 0,
    do_sample: bool = False,
    bias: Tensor | None = None,
    suppress: Sequence[int] | Tensor | None = None,
    token_bitmask: Tensor | None = None,
    normalized: bool = False,
    length_penalty: float = 1.0,
    early_stopping: bool | str = False,
    normalisers: Tensor | None = None,
    stopping_criteria: Callable[[Tensor], Tensor | bool] | None = None,
    sort_draws: bool = True,
    seed: int | Sequence[int] | Tensor | None = None,
    noise: Tensor | None = None,
    rng: str = "philox",
    generator: torch.Generator | None = None,
    **knobs: Unpack[ShapingKnobs],
) -> BeamStepOutput:
    """Scores every continuation, decides which end, continue or die, and updates `state`.

    normalisers: as in `PreparedBeamStep`; None computes them from `length_penalty` and `early_stopping`.
    """
    if state.steps is not None:
        step = int(state.steps[0])
        if int(state.unfinished) == 0:
            return unmoved(state, step)
    if normalisers is None:
        normalisers = normalisers_of(state, length_penalty, early_stopping)
    log_probs, status = log_probabilities(logits, normalized)
    scores, shaped_status, _ = shape_rows(
        log_probs,
        do_sample=do_sample,
        input_ids=state.history[:, : state.prompt_length + step],
        prompt_lengths=state.prompt_length,
        bias=bias,
        suppress=suppress,
        token_bitmask=token_bitmask,
        **knobs,
    )
    status = torch.where(status == OK, shaped_status, status)
    scores[status != OK] = -math.inf
    exponential = None
    if do_sample:
        exponential = exponential_noise(scores, seed=seed, step=step, noise=noise, rng=rng, generator=generator)
    candidates = select_candidates(scores, state, exponential, sort_draws)
    ends = hits(candidates, state, step, stopping_criteria)
    output = advance(state, candidates, ends, status, step, normalisers, early_stopping is True)
    if state.steps is not None:
        state.steps += 1
    return output


def log_probabilities(logits: Tensor, normalized: bool) -> tuple[Tensor, Tensor]:
    """Returns (rows, vocab_size) float32 log-probabilities and the status of every row.

    `normalized` logits are log-probabilities already. An invalid row has no continuation: all its values are -inf.
    """
    x = logits.float()
    if normalized:
        return x, torch.zeros(len(x), dtype=torch.int32, device=x.device)
    status = torch.tensor([row_status(row) for row in x], dtype=torch.int32, device=x.device)
    log_probs = torch.log_softmax(x.double(), dim=-1).float()
    log_probs[status != OK] = -math.inf
    return log_probs, status


def select_candidates(
    scores: Tensor, state: BeamState, exponential: Tensor | None, sort_draws: bool = True
) -> Candidates:
    """Returns the K continuations with the largest score.

    With noise E (row = beam) it returns the K winners of score - ln E, a draw without replacement. Ties go to the
    better parent, then to the lower token id.

    sort_draws: sort drawn candidates by score; equal ones keep the order of the draw.
    """
    count, vocab_size = state.num_candidates, scores.shape[1]
    shape, device = (state.batch_size, count), scores.device
    token_ids = torch.full(shape, NONE, dtype=torch.int64, device=device)
    parents = torch.full(shape, NONE, dtype=torch.int64, device=device)
    best = torch.full(shape, -math.inf, dtype=torch.float32, device=device)
    for b in range(state.batch_size):
        sums = (scores[state.slots[b]] + state.running_scores[b, :, None]).flatten()
        values = sums.double()
        if exponential is not None:
            beams = slice(b * state.num_beams, (b + 1) * state.num_beams)
            # Subtract the largest sum first: beside 1e20, a float64 would round the noise away.
            values = (values - values.max()) - exponential[beams].flatten().double().log()
            values = values.clamp(min=torch.finfo(torch.float64).min).masked_fill(sums == -math.inf, -math.inf)
        order = torch.sort(values, descending=True, stable=True).indices[:count]
        order = order[sums[order] > -math.inf]
        if exponential is not None and sort_draws:
            order = order[torch.sort(sums[order], descending=True, stable=True).indices]
        token_ids[b, : len(order)] = order % vocab_size
        parents[b, : len(order)] = order // vocab_size
        best[b, : len(order)] = sums[order]
    return Candidates(token_ids, parents, best)


def hits(
    candidates: Candidates,
    state: BeamState,
    step: int,
    stopping_criteria: Callable[[Tensor], Tensor | bool] | None,
) -> Tensor:
    """Returns (B, K) bool: the candidates that end, by their token, the length or the stopping criteria."""
    ends = ~candidates.exist
    if step + 1 == (state.max_new_tokens if state.limit is None else int(state.limit)):
        ends = torch.ones_like(ends)
    if state.eos_token_ids is not None:
        ends = ends | torch.isin(candidates.token_ids, state.eos_token_ids)
    if stopping_criteria is not None:
        answer = torch.as_tensor(stopping_criteria(candidate_sequences(candidates, state, step)), device=ends.device)
        ends = ends | (answer if answer.dim() == 0 else answer.view(ends.shape))
    return ends


def candidate_sequences(candidates: Candidates, state: BeamState, step: int) -> Tensor:
    """Returns the texts of the candidates, (B * K, prompt_length + step + 1) int64."""
    rows = state.slots.gather(1, candidates.parents.clamp(min=0)).flatten()
    last = candidates.token_ids.masked_fill(~candidates.exist, state.pad_token_id)
    return torch.cat([state.tokens(step)[rows], last.view(-1, 1)], dim=1)


def advance(
    state: BeamState,
    candidates: Candidates,
    ends: Tensor,
    status: Tensor,
    step: int,
    normalisers: Tensor,
    stops_when_full: bool,
) -> BeamStepOutput:
    """Writes the step into `state`. status: (rows,) int32, of the rows of logits."""
    of_finished, of_running = normalisers[:, step]
    output = unmoved(state, step)
    for b in range(state.batch_size):
        beams = slice(b * state.num_beams, (b + 1) * state.num_beams)
        was_open = bool(state.open[b])
        update_finished(state, b, candidates, ends[b], step, of_finished, stops_when_full)
        survivors = update_running(state, b, candidates, ends[b], step)
        update_open(state, b, of_running)
        move_rows(state, b, survivors, step, output)
        if was_open:
            stuck = not bool(candidates.exist[b].any()) and not bool(state.finished[b].any())
            output.status[beams] = torch.where((status[beams] == ALL_MASKED) & (not stuck), OK, status[beams])
    over = bool(ends.all()) or (stops_when_full and bool(state.finished.all()))
    state.unfinished.fill_(0 if over else int(state.open.sum()))
    return output


def unmoved(state: BeamState, step: int) -> BeamStepOutput:
    """Returns the output of a step in which every row stays and feeds its last token again."""
    rows, device = state.rows, state.token_ids.device
    return BeamStepOutput(
        token_ids=state.token_ids[:, state.prompt_length + step - 1].clone(),
        source_rows=torch.arange(rows, device=device),
        shared=torch.full((rows,), step, dtype=torch.int64, device=device),
        status=torch.zeros(rows, dtype=torch.int32, device=device),
    )


def update_finished(
    state: BeamState,
    b: int,
    candidates: Candidates,
    ends: Tensor,
    step: int,
    normaliser: Tensor,
    stops_when_full: bool,
) -> None:
    """Adds the candidates that end and rank among the first n to the finished hypotheses, scored sum / normaliser."""
    n, count = state.num_beams, candidates.scores.shape[1]
    joins = ends & candidates.exist[b] & (torch.arange(count, device=ends.device) < n)
    scores = candidates.scores[b] / normaliser
    is_full = stops_when_full and bool(state.finished[b].all())
    for barred in (is_full, not bool(state.open[b]), ~joins):
        scores = scores + NEVER_WINS * torch.as_tensor(barred, device=scores.device)

    def merged(pool: Tensor, new: Tensor) -> Tensor:
        return torch.cat([pool[b], new.to(pool.dtype)])[order]

    order = torch.sort(torch.cat([state.finished_scores[b], scores]), descending=True, stable=True).indices[:n]
    state.finished_scores[b] = merged(state.finished_scores, scores)
    state.finished[b] = merged(state.finished, joins)
    state.finished_steps[b] = merged(state.finished_steps, torch.full_like(ends, step, dtype=torch.int64))
    state.finished_tokens[b] = merged(state.finished_tokens, candidates.token_ids[b])
    state.finished_parents[b] = merged(state.finished_parents, candidates.parents[b] + b * n)


def update_running(state: BeamState, b: int, candidates: Candidates, ends: Tensor, step: int) -> Tensor:
    """Continues the best n candidates that do not end; returns their parents (n,).

    If there are fewer, ended candidates follow with a score that never wins, then dead ones with -inf, which feed the
    pad token.
    """
    n = state.num_beams
    scores = candidates.scores[b] + ends * NEVER_WINS
    order = torch.sort(scores, descending=True, stable=True).indices[:n]
    state.running_scores[b] = scores[order]
    exist, beams = candidates.exist[b][order], slice(b * n, (b + 1) * n)
    parents = torch.where(exist, candidates.parents[b][order], torch.arange(n, device=exist.device))
    state.step_tokens[step, beams] = torch.where(exist, candidates.token_ids[b][order], state.pad_token_id)
    state.step_parents[step, beams] = (parents + b * n).to(torch.int32)
    return parents


def update_open(state: BeamState, b: int, normaliser: Tensor) -> None:
    """Sets whether the best running beam still beats a finished hypothesis."""
    attainable = state.running_scores[b, 0] / normaliser
    worst = torch.where(state.finished[b], state.finished_scores[b].min(), NEVER_WINS)
    state.open[b] &= bool((attainable > worst).any())


def move_rows(state: BeamState, b: int, parents: Tensor, step: int, output: BeamStepOutput) -> None:
    """Finds a row for every new beam and appends its token.

    The first child of a beam stays in its row. Every other child moves into a row whose beam has no child: the one
    with the longest history in common with its parent's row. The move copies only positions that differ.
    """
    n = state.num_beams
    first_row = b * n
    slots, shared = (state.slots[b] - first_row).tolist(), state.shared[b]
    rows: list[int] = []
    for parent in parents.tolist():
        row = slots[parent]
        rows.append(row if row not in rows else NONE)
    free = [row for row in range(n) if row not in rows]
    for beam, parent in enumerate(parents.tolist()):
        if rows[beam] != NONE:
            continue
        source = slots[parent]
        target = max(free, key=lambda row: (int(shared[source, row]), -row))
        free.remove(target)
        rows[beam] = target
        common = int(shared[source, target])
        output.source_rows[first_row + target] = first_row + source
        output.shared[first_row + target] = common
        copied = slice(state.prompt_length + common, state.prompt_length + step)
        for table in (state.token_ids, state.history):
            table[first_row + target, copied] = table[first_row + source, copied]
        shared[target] = shared[source]
        shared[:, target] = shared[target]
        shared[target, target] = 0
        shared[source, target] = shared[target, source] = step
    state.slots[b] = torch.tensor(rows, device=state.slots.device) + first_row
    for table in (state.token_ids, state.history):
        table[state.slots[b], state.prompt_length + step] = state.step_tokens[step, first_row : first_row + n]
    output.token_ids[state.slots[b]] = state.step_tokens[step, first_row : first_row + n]
