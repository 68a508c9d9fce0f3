"""Contrastive search: look at the likeliest tokens, and take the one that is likely and unlike the text so far."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from pygen.call.call import Call
from pygen.decode.contrastive_scores import Context, contrastive_scores
from pygen.decode.lookahead import Lookahead, SequentialLookahead, TogetherLookahead
from pygen.decode.monitor import Monitor
from pygen.decode.observer import Recorder, StepObserver
from pygen.decode.run import run
from pygen.decode.sample import generate_tokens, observer
from pygen.models.cache import num_positions
from pygen.models.versions import given_cache, given_cache_name
from pygen.ops import DecodeState, RowStatus, SampleOutput, prepare_sample
from pygen.ops._bookkeeping import append_tokens
from pygen.ops._ties import lowest_argmax
from pygen.outputs import GenerateOutput
from pygen.plan.pipeline import Pipeline, SampleBinding, StepResult
from pygen.plan.plan import Plan, make_plan


def generate_contrastively(call: Call) -> Tensor | GenerateOutput:
    """Contrastive search: `penalty_alpha` > 0 with `top_k` > 1 candidates, in one forward or, with `low_memory`, one
    after the other."""
    _check(call)
    config, plan = call.config, make_plan(call)
    count = config.top_k
    assert isinstance(count, int) and config.penalty_alpha is not None
    penalty_alpha = config.penalty_alpha
    model: Lookahead
    if config.low_memory:
        model, copies = SequentialLookahead(call.adapter), call.num_copies
    else:
        model, copies = TogetherLookahead(call.adapter, count), call.num_copies * count

    def loop(state: DecodeState, recorder: Recorder, monitor: Monitor) -> int:
        if monitor.cancelled():
            return 0
        stepper = ContrastiveStepper(
            model,
            state,
            observer(call, plan, state, recorder),
            lambda logits: CandidateChooser(plan, logits, state, count),
            lambda states: Context(states, _visible(call, states.shape[1]), call.lengths.max_new_tokens),
            penalty_alpha=penalty_alpha,
        )
        return run(stepper, monitor, max_steps=call.lengths.max_new_tokens)

    # The model also reads candidates for the last token.
    longest = call.lengths.max_new_tokens + 1
    return generate_tokens(call, plan, loop, num_copies=copies, max_new_tokens=longest, hidden_states=True)


class ContrastiveStepper:
    """A `Stepper` whose launch is a whole step: the candidates, their forward, and the choice between them."""

    lag = 0

    def __init__(
        self,
        model: Lookahead,
        state: DecodeState,
        steps: StepObserver,
        bind: Callable[[Tensor], CandidateChooser],
        begin: Callable[[Tensor], Context],
        *,
        penalty_alpha: float,
    ) -> None:
        """bind: the chooser for logits like those given. begin: the context of prompts with these states."""
        self._model, self._state, self._steps = model, state, steps
        self._penalty_alpha = penalty_alpha
        self._logits, states = model.prefill(state.tokens(0))
        self._choose, self._context = bind(self._logits), begin(states)
        self._rows = torch.arange(state.rows, device=state.token_ids.device)
        self._taken: tuple[Tensor, Tensor] | None = None

    def launch(self, step: int) -> None:
        if self._taken is not None:
            states, best = self._taken
            self._context.append(states[self._rows, best])
            self._logits = self._model.take(self._state.tokens(step), best)
        found = self._choose.find(self._logits, step)
        states = self._model.look(self._state.tokens(step), found.token_ids)
        scores = contrastive_scores(found.logprobs, self._context.similarity(states), self._penalty_alpha)
        best = lowest_argmax(scores)
        self._taken = states, best
        self._steps.observe(step, self._logits, self._choose.take(best, step))

    def report(self, step: int) -> StepObserver:
        return self._steps.report()

    def finish(self, steps: int) -> None:
        if steps > 0:
            self._model.leave()

    def close(self) -> None:
        """An eager stepper holds nothing that must be given back."""


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

    def take(self, best: Tensor, step: int) -> StepResult:
        """Appends candidate best[r] to row r."""
        at = best[:, None]
        tokens = self._found.token_ids.gather(1, at)[:, 0]
        logprobs = self._found.logprobs.gather(1, at)[:, 0]
        append_tokens(self._state, tokens, step)
        output: SampleOutput = self._judged._replace(token_ids=tokens, logprobs=logprobs)
        return StepResult(output, self._scores if self._keeps_scores else None)


def _visible(call: Call, length: int) -> Tensor | None:
    """(rows, length), 0 where the prompts' states are those of padding; what a model puts before them is visible."""
    mask = call.prompt.mask
    if mask is None or mask.ndim != 2:
        return None
    mask = mask[:, -length:]
    before = mask.new_ones((mask.shape[0], length - mask.shape[1]))
    return torch.cat([before, mask], dim=1).repeat_interleave(call.num_copies, dim=0)


def _check(call: Call) -> None:
    kwargs = call.prompt.model_kwargs
    if num_positions(given_cache(kwargs)):
        name = given_cache_name(call.settings.model_kwargs)
        raise ValueError(
            f"`{name}` must be empty with `penalty_alpha`: candidates are compared with the hidden states of the whole "
            f"text, which a cache does not hold; leave it out"
        )
