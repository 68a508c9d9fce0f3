"""Constrained beam search: beams that have come far with their constraints are kept beside the likely ones."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pygen.call.call import Call
from pygen.decode.beam import Search, first_steps, refuse_with, searched, searched_eagerly, sizes, texts
from pygen.decode.constrained_update import (
    NO_TOKEN,
    Chosen,
    add_finished,
    close_beaten,
    move_rows,
    sequences_of,
    set_running,
)
from pygen.decode.constraints import Constraint, ConstraintListState, make_constraints
from pygen.ops import BeamStepOutput, RowStatus, beam_finalize, prepare_beam_step
from pygen.ops._beam_normalisers import normalisers_of
from pygen.ops._beam_state import NEVER_WINS, BeamState
from pygen.outputs import GenerateOutput
from pygen.plan.beam_pipeline import BeamBinding, SearchArguments
from pygen.plan.pipeline import Op
from pygen.plan.plan import Plan, make_plan

StoppingCriteria = Callable[[Tensor], "Tensor | bool"]


def generate_with_constraints(call: Call) -> Tensor | GenerateOutput:
    """Constrained beam search: every hypothesis holds the words of `force_words_ids` and meets `constraints`."""
    refuse_with("force_words_ids" if call.config.force_words_ids is not None else "constraints", call)
    plan = make_plan(call)
    constraints = make_constraints(call.config.constraints, call.config.force_words_ids)
    state = BeamState.create(*sizes(call), **texts(call, plan), step_capacity=first_steps(call))

    def loop(search: Search) -> int:
        return searched_eagerly(
            call, plan, state, ConstrainedBinding(plan, state, constraints, **search.arguments), search
        )

    return searched(call, state, loop, lambda count: beam_finalize(state, count))


class ConstrainedBinding(BeamBinding):
    """The rows of a constrained beam search, for the loop `beam`: its last stage takes the log-probabilities that all
    processors have been applied to, and advances a `ConstrainedSearch`.

    plan: without sampling.
    """

    def __init__(
        self,
        plan: Plan,
        state: BeamState,
        constraints: list[Constraint],
        *,
        length_penalty: float = 1.0,
        early_stopping: bool | str = False,
        stopping_criteria: StoppingCriteria | None = None,
    ) -> None:
        super().__init__(plan, state, {})
        search: SearchArguments = {
            "length_penalty": length_penalty,
            "early_stopping": early_stopping,
            "stopping_criteria": stopping_criteria,
        }
        # Nothing but the checks: the step that it prepares is never run.
        prepare_beam_step(torch.zeros((state.rows, 1), device=state.token_ids.device), state, **search)
        self._search = ConstrainedSearch(state, constraints, **search)

    def choose(self, example: Tensor, first: bool, **knobs: Any) -> Op:
        log_probs_of = self.shape(example, first, **knobs)

        def run(scores: Tensor, *, step: int) -> BeamStepOutput:
            status = _status(scores)
            log_probs = log_probs_of(scores, step=step)
            status = torch.where(status == RowStatus.OK, _status(log_probs), status)
            return self._search.advance(log_probs, status, step)

        return run


class Continuation(NamedTuple):
    """A beam and a token after it."""

    parent: int  # rank of the beam
    token_id: int
    score: float  # sum, the parent's included
    constraints: ConstraintListState  # with the token


class ConstrainedSearch:
    """Advances every beam by one token, as Hugging Face's constrained beam search did (transformers 4).

    Per prompt, with n beams and K continuations as in `beam_step`::

        natural = the K continuations with the largest sum of scores
        forced  = every running beam with every token that advances one of its constraints
        ended   = those with an EOS token: natural ones among the first n, and forced ones
        going   = the first n natural ones and the forced ones that do not end; where none of `going` and `ended` meets
                  all constraints, also the best beam that does, with its best token
        beams   = n of `going`, one from every bank in turn, the fullest bank first, the best of a bank first
        finished: of `ended`, and of beams that are stopped, those that meet all constraints, scored as in `beam_step`

    A bank holds the continuations that have made equal progress (`ConstraintListState.get_bank`). Ties go to natural
    ones, and among them to the better parent, then to the lower token id. A forced continuation of score -inf is none.

    A beam stops at the length limit, or by `stopping_criteria`, which is called once a step
    with the beams (B * n, prompt_length + step + 1); one that it stops too early for its constraints goes on, and the
    search is over when all are stopped. `length_penalty`, `early_stopping` and what else ends the search are those of
    `beam_step`. Where a prompt's search ends with places left among its finished hypotheses, these take the best beams
    that miss constraints, in `finished` False.

    Visible tokens of the prompt count for the constraints; `history` hides the others.

    So once a beam has met all constraints there is always one, and the search ends with a hypothesis that does.

    Sources: Hokamp and Liu (2017), Post and Vilar (2018).
    """

    def __init__(
        self,
        state: BeamState,
        constraints: list[Constraint],
        *,
        length_penalty: float,
        early_stopping: bool | str,
        stopping_criteria: StoppingCriteria | None,
    ) -> None:
        self._state = state
        self._divides = (length_penalty, early_stopping)
        self._normalisers = normalisers_of(state, *self._divides)
        self._stops_when_full = early_stopping is True
        self._stopping_criteria = stopping_criteria
        self._eos = set() if state.eos_token_ids is None else set(state.eos_token_ids.tolist())
        # By prompt and beam.
        self._progress: list[list[ConstraintListState]] = []
        for prompt in state.history[:: state.num_beams, : state.prompt_length].tolist():
            progress = ConstraintListState(constraints)
            progress.reset([token_id for token_id in prompt if token_id >= 0])
            self._progress.append([progress] * state.num_beams)

    def advance(self, log_probs: Tensor, status: Tensor, step: int) -> BeamStepOutput:
        """Writes the step into the state.

        log_probs: (rows, vocab_size) float32 by row, processed; overwritten.
        status: (rows,) int32, values of `RowStatus`; rows that are not OK have no continuation.
        """
        state, prompts = self._state, range(self._state.batch_size)
        if step >= self._normalisers.shape[1]:
            self._normalisers = normalisers_of(state, *self._divides)
        log_probs[status != RowStatus.OK] = -math.inf
        sums = log_probs[state.slots] + state.running_scores[..., None]
        was_open = state.open.tolist()
        proposed = [self._continuations(b, sums[b]) if was_open[b] else ([], []) for b in prompts]
        beams, ended = ([_best_first(part) for part in parts] for parts in zip(*proposed, strict=True))
        stopped = self._stopped(self._table(beams), step).tolist()
        over = all(all(stopped[b][: len(beams[b])]) for b in prompts)

        complete: list[list[Continuation]] = []
        for b in prompts:
            done = [stopped[b][rank] and c.constraints.completed for rank, c in enumerate(beams[b])]
            joining = [c for c in ended[b] if c.constraints.completed]
            complete.append(_best_first([*joining, *itertools.compress(beams[b], done)])[: state.num_beams])
            beams[b] = [c for c, is_done in zip(beams[b], done, strict=True) if not is_done]

        finishing, running = self._table(complete), self._table(beams)
        output = self._output(step)
        of_finished, of_running = self._normalisers[:, step]
        for b in prompts:
            add_finished(state, b, finishing, step, of_finished, stops_when_full=self._stops_when_full)
            if over or not beams[b]:
                self._fill_up(b, beams[b] or ended[b], step)
            parents = set_running(state, b, running, step)
            close_beaten(state, b, of_running)
            move_rows(state, b, parents, step, output)
            self._progress[b] = [c.constraints for c in beams[b]]
            if was_open[b]:
                self._report(b, status, output)
        full = self._stops_when_full and bool(state.finished.all())
        state.unfinished.fill_(0 if over or full else int(state.open.sum()))
        return output

    def _report(self, b: int, status: Tensor, output: BeamStepOutput) -> None:
        """Reports a row without an allowed token only if prompt b has no other continuation."""
        state = self._state
        rows = slice(b * state.num_beams, (b + 1) * state.num_beams)
        if self._progress[b] or bool((state.finished_steps[b] >= 0).any()):
            status = status.masked_fill(status == RowStatus.ALL_MASKED, RowStatus.OK)
        output.status[rows] = status[rows]

    def _continuations(self, b: int, sums: Tensor) -> tuple[list[Continuation], list[Continuation]]:
        """Of prompt b with sums (n, vocab_size): those that go on, and those that end."""
        n = self._state.num_beams
        going: list[Continuation] = []
        ended: list[Continuation] = []
        for rank, (parent, token_id, score) in enumerate(self._natural(sums)):
            if token_id not in self._eos:
                going.append(self._continuation(b, parent, token_id, score))
            elif rank < n:
                ended.append(self._continuation(b, parent, token_id, score))
        going = going[:n]
        known = {(c.parent, c.token_id) for c in (*going, *ended)}
        for parent, token_id, score in self._forced(b, sums):
            if (parent, token_id) not in known:
                known.add((parent, token_id))
                target = ended if token_id in self._eos else going
                target.append(self._continuation(b, parent, token_id, score))
        if not any(c.constraints.completed for c in (*going, *ended)):
            going += self._kept(b, sums)
        return _one_bank_after_the_other(going)[:n], ended

    def _kept(self, b: int, sums: Tensor) -> list[Continuation]:
        """The best beam of prompt b that meets all constraints with its best token, if there is one."""
        rank = next((rank for rank, progress in enumerate(self._progress[b]) if progress.completed), None)
        if rank is None:
            return []
        scores = sums[rank].clone()
        scores[[token_id for token_id in self._eos if 0 <= token_id < len(scores)]] = -math.inf
        token_id = int(scores.argmax())
        score = float(scores[token_id])
        return [self._continuation(b, rank, token_id, score)] if score > -math.inf else []

    def _natural(self, sums: Tensor) -> Iterator[tuple[int, int, float]]:
        """(parent, token id, score) of the K largest, best first."""
        flat, vocab_size = sums.flatten(), sums.shape[1]
        count = min(self._state.num_candidates, len(flat))
        threshold = flat.topk(count).values[-1]
        # `topk` breaks ties arbitrarily, so all sums at the threshold are candidates.
        indices = ((flat >= threshold) & (flat > -math.inf)).nonzero()[:, 0]
        best = flat[indices].sort(descending=True, stable=True)
        for index, score in zip(indices[best.indices[:count]].tolist(), best.values[:count].tolist(), strict=True):
            yield index // vocab_size, index % vocab_size, score

    def _forced(self, b: int, sums: Tensor) -> Iterator[tuple[int, int, float]]:
        """(parent, token id, score) of every step that a constraint asks for."""
        alive = (self._state.running_scores[b] > NEVER_WINS).tolist()
        pairs = [
            (parent, token_id)
            for parent, progress in enumerate(self._progress[b])
            if alive[parent] and not progress.completed
            for token_id in progress.advance() or ()
        ]
        for _, token_id in pairs:
            if not 0 <= token_id < sums.shape[1]:
                raise ValueError(f"`constraints` must ask for ids in [0, {sums.shape[1]}), got {token_id}")
        if pairs:
            scores = sums[tuple(torch.tensor(pairs, device=sums.device).T)].tolist()
            yield from ((*pair, score) for pair, score in zip(pairs, scores, strict=True) if score > -math.inf)

    def _continuation(self, b: int, parent: int, token_id: int, score: float) -> Continuation:
        progress = self._progress[b][parent]
        if not progress.completed:
            progress = progress.copy()
            progress.add(token_id)
        return Continuation(parent, token_id, score, progress)

    def _stopped(self, beams: Chosen, step: int) -> Tensor:
        """(B, n) bool: which of the new beams reach the length limit, or are stopped by the caller."""
        if step + 1 == self._state.max_new_tokens:
            return torch.ones_like(beams.exist)
        if self._stopping_criteria is None:
            return torch.zeros_like(beams.exist)
        answer = self._stopping_criteria(sequences_of(beams, self._state, step))
        return torch.as_tensor(answer, device=beams.exist.device).expand(beams.exist.numel()).view(beams.exist.shape)

    def _fill_up(self, b: int, continuations: list[Continuation], step: int) -> None:
        """Fills the empty slots among the finished hypotheses of prompt b with `continuations`, best first."""
        state = self._state
        free = (~state.finished[b]).nonzero()[:, 0].tolist()
        for slot, best in zip(free, continuations, strict=False):
            state.finished_scores[b, slot] = best.score / self._normalisers[0, step]
            state.finished_steps[b, slot] = step
            state.finished_tokens[b, slot] = best.token_id
            state.finished_parents[b, slot] = b * state.num_beams + best.parent

    def _table(self, continuations: list[list[Continuation]]) -> Chosen:
        """At most n of every prompt, as (B, n) tensors."""
        n, device = self._state.num_beams, self._state.token_ids.device

        def column(name: str, missing: float, dtype: torch.dtype) -> Tensor:
            values = [[getattr(c, name) for c in row] + [missing] * (n - len(row)) for row in continuations]
            return torch.tensor(values, dtype=dtype, device=device)

        return Chosen(
            column("token_id", NO_TOKEN, torch.int64),
            column("parent", NO_TOKEN, torch.int64),
            column("score", -math.inf, torch.float32),
        )

    def _output(self, step: int) -> BeamStepOutput:
        """Every row stays where it is."""
        rows = torch.arange(self._state.rows, device=self._state.token_ids.device)
        status = torch.zeros_like(rows, dtype=torch.int32)
        return BeamStepOutput(torch.empty_like(rows), rows, torch.full_like(rows, step), status)


def _best_first(continuations: list[Continuation]) -> list[Continuation]:
    return sorted(continuations, key=lambda c: -c.score)


def _one_bank_after_the_other(continuations: list[Continuation]) -> list[Continuation]:
    """The best of the fullest bank, the best of the next, ..., then the second best of each, and so on."""

    def bank(continuation: Continuation) -> int:
        return continuation.constraints.get_bank()

    ranked = sorted(_best_first(continuations), key=bank, reverse=True)
    banks = [list(of_bank) for _, of_bank in itertools.groupby(ranked, key=bank)]
    in_turn = itertools.chain.from_iterable(itertools.zip_longest(*banks))
    return [continuation for continuation in in_turn if continuation is not None]


def _status(scores: Tensor) -> Tensor:
    """(rows,) int32, values of `RowStatus`."""
    largest = scores.amax(dim=1)
    status = torch.full_like(largest, RowStatus.OK, dtype=torch.int32)
    status[largest == -math.inf] = RowStatus.ALL_MASKED
    status[largest == math.inf] = RowStatus.POS_INF
    status[largest.isnan()] = RowStatus.NAN
    return status
