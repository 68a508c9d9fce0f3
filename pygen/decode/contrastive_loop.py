"""Contrastive search: look at the likeliest tokens, and take the one that is likely and unlike the text so far."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from pygen.decode.contrastive_scores import Context, contrastive_scores
from pygen.decode.lookahead import Lookahead
from pygen.decode.monitor import Monitor
from pygen.ops import DecodeState, RowStatus, SampleOutput, prepare_sample
from pygen.plan.pipeline import Choice, Pipeline, SampleBinding
from pygen.plan.plan import Plan
from pygen.reference.sample import append_tokens, argmax_lowest


def contrastive(
    model: Lookahead,
    state: DecodeState,
    bind: Callable[[Tensor], CandidateChooser],
    begin: Callable[[Tensor], Context],
    monitor: Monitor,
    *,
    penalty_alpha: float,
    max_new_tokens: int,
) -> int:
    """Generates until every row has finished, and returns the number of steps.

    bind: gives the chooser for logits like those given. begin: gives the context of prompts with these hidden states.
    """
    if monitor.cancelled():
        return 0
    logits, states = model.prefill(state.tokens(0))
    choose, context = bind(logits), begin(states)
    rows = torch.arange(state.rows, device=state.token_ids.device)
    for step in range(max_new_tokens):
        found = choose.find(logits, step)
        states = model.look(state.tokens(step), found.token_ids)
        scores = contrastive_scores(found.logprobs, context.similarity(states), penalty_alpha)
        best = argmax_lowest(scores)
        choice = choose.take(best, step)
        signal = monitor.observe(step, logits, choice)
        if monitor.must_stop(step, signal, logits, choice) or step + 1 == max_new_tokens:
            model.leave()
            return step + 1
        context.append(states[rows, best])
        logits = model.take(state.tokens(step + 1), best)
    return max_new_tokens


class Candidates(NamedTuple):
    """The k likeliest tokens of every row, the best first and ties by id: ids (rows, k) int64, and ln of their
    probabilities (rows, k) float32, -inf for what must not follow, whose id is that of the first again."""

    token_ids: Tensor
    logprobs: Tensor


class CandidateChooser:
    """A plan bound to a state: finds candidates, and appends the one that was taken."""

    def __init__(self, plan: Plan, logits: Tensor, state: DecodeState, num_candidates: int) -> None:
        """logits: an example of what will come."""
        self._keeps_scores = plan.keep_scores
        self._pipeline = Pipeline(dataclasses.replace(plan, keep_scores=True), logits, SampleBinding(plan, state))
        self._state = state
        self._count = num_candidates
        example = torch.empty(logits.shape, dtype=torch.float32, device=logits.device)
        self._judge = prepare_sample(example, do_sample=False, logprobs=max(num_candidates, plan.num_logprobs))

    def find(self, logits: Tensor, step: int) -> Candidates:
        """The candidates after `logits` (rows, vocab_size). A row without a choice has one, that of `on_invalid`."""
        scores = self._pipeline.kept(self._pipeline.shape(logits, step), step)
        assert scores is not None
        self._scores, self._judged = scores, self._judge(scores)
        best, top = self._judged.token_ids[:, None], self._judged.top_logprobs
        assert top is not None
        is_candidate = top.token_ids[:, : self._count] >= 0
        token_ids = torch.where(is_candidate, top.token_ids[:, : self._count], best)
        logprobs = top.logprobs[:, : self._count].masked_fill(~is_candidate, -math.inf)
        logprobs[:, 0].masked_fill_(self._judged.status != RowStatus.OK, 0.0)
        self._found = Candidates(token_ids, logprobs)
        return self._found

    def take(self, best: Tensor, step: int) -> Choice:
        """Appends candidate best[r] to row r."""
        at = best[:, None]
        tokens = self._found.token_ids.gather(1, at)[:, 0]
        logprobs = self._found.logprobs.gather(1, at)[:, 0]
        append_tokens(self._state, tokens, step)
        output: SampleOutput = self._judged._replace(token_ids=tokens, logprobs=logprobs)
        return Choice(output, self._scores if self._keeps_scores else None)
