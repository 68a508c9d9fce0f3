"""Which token follows where drafts are checked: the choice of every position, in the order of the text.

A chooser receives the drafts of a round. The loop then calls it for one position after the other, as long as it chose
the draft. So processors see only tokens of the text, and each position is chosen as in a call without drafts.
"""

from __future__ import annotations

import dataclasses
from typing import Protocol

import torch
from torch import Tensor

from pygen import rng
from pygen.ops import DecodeState, KeptRows, RowStatus, prepare_sample
from pygen.ops._bookkeeping import append_tokens
from pygen.plan.pipeline import Pipeline, SampleBinding, SamplePipeline, StepResult, every_token
from pygen.plan.plan import Plan


class DraftChooser(Protocol):
    def begin(self, drafts: Tensor, scores: Tensor | None) -> None:
        """A round begins: its drafts (rows, k) int64, and the scores (rows, k, vocab_size) they were drawn from."""
        ...

    def __call__(self, logits: Tensor, step: int) -> StepResult:
        """Chooses the next position's tokens from `logits` (rows, vocab_size) and appends them to the state."""
        ...


def bind_chooser(plan: Plan, logits: Tensor, state: DecodeState, *, drafts_have_scores: bool) -> DraftChooser:
    """The chooser that a plan asks for; `logits` is an example.

    Greedy rows, and all with seeds, whose noise belongs to step and token: the tokens of a call without drafts.
    Otherwise the distribution is that of a call without drafts, and torch's generator is used as transformers does.
    """
    if plan.noise.get("rng") != "torch":
        return _Independent(plan, logits, state)
    if drafts_have_scores:
        return _Speculative(plan, logits, state)
    return _RoundNoise(plan, logits, state)


class _Independent:
    """The choice depends neither on the drafts nor on their number."""

    def __init__(self, plan: Plan, logits: Tensor, state: DecodeState) -> None:
        self._choose = SamplePipeline(plan, logits, state)

    def begin(self, drafts: Tensor, scores: Tensor | None) -> None:
        """Nothing to prepare."""

    def __call__(self, logits: Tensor, step: int) -> StepResult:
        return self._choose(logits, step)


class _RoundNoise:
    """The noise of a round's k + 1 positions is drawn at once, as by one `torch.multinomial` over all of them."""

    def __init__(self, plan: Plan, logits: Tensor, state: DecodeState) -> None:
        self._generator = plan.noise["generator"]
        self._noise = torch.ones(logits.shape, dtype=torch.float32, device=logits.device)
        self._choose = SamplePipeline(dataclasses.replace(plan, noise={"noise": self._noise}), logits, state)

    def begin(self, drafts: Tensor, scores: Tensor | None) -> None:
        rows, vocab_size = self._noise.shape
        positions = drafts.shape[1] + 1
        noise = rng.torch_exponential(positions * rows, vocab_size, self._generator, self._noise.device)
        self._positions = iter(noise.view(positions, rows, vocab_size))

    def __call__(self, logits: Tensor, step: int) -> StepResult:
        self._noise.copy_(next(self._positions))
        return self._choose(logits, step)


class _Speculative:
    """Speculative sampling by the rule of `pygen.ops.verify_draft`, one position at a time.

    That op takes the scores of a whole round. Here processors make them, each from the tokens chosen before.
    As in transformers, torch's generator gives one uniform number per draft when a round begins, and noise for the
    one draw at its end.
    """

    def __init__(self, plan: Plan, logits: Tensor, state: DecodeState) -> None:
        self._keeps_scores = plan.keep_scores
        self._generator = plan.noise["generator"]
        self._turn = rng.lock_of(self._generator or rng.default_generator(logits.device))
        plan = dataclasses.replace(plan, keep_scores=True)
        self._pipeline = Pipeline(plan, logits, SampleBinding(plan, state))
        self._state = state
        self._greedy = plan.greedy_mask(state)
        example = torch.empty(logits.shape, dtype=torch.float32, device=logits.device)
        # Finds rows without any choice, the log-probabilities, and what survives; nothing that it draws is taken.
        self._judge = prepare_sample(
            example,
            do_sample=_drawn(plan, self._greedy),
            seed=[0] * state.rows,
            logprobs=plan.num_logprobs,
            token_bitmask=every_token(logits.shape[1], logits.device) if plan.kept else None,
            **plan.kept,
        )

    def begin(self, drafts: Tensor, scores: Tensor | None) -> None:
        self._drafts = drafts
        self._position = 0
        self._scores = scores
        with self._turn:
            self._uniform = torch.rand(drafts.shape, generator=self._generator, device=drafts.device)

    def __call__(self, logits: Tensor, step: int) -> StepResult:
        scores = self._pipeline.kept(self._pipeline.shape(logits, step), step)
        assert scores is not None
        judged = self._judge(scores)
        ok = judged.status == RowStatus.OK
        p = torch.where(ok[:, None], self._probabilities(scores), _one_hot(judged.token_ids, scores))
        tokens = self._tokens(p).clone()
        kept = judged.kept.without(self._state.finished) if isinstance(judged.kept, KeptRows) else None
        append_tokens(self._state, tokens, step)
        output = judged._replace(token_ids=tokens, kept=kept)
        if judged.logprobs is not None:
            output = output._replace(logprobs=scores.log_softmax(-1).gather(1, tokens[:, None])[:, 0])
        return StepResult(output, scores if self._keeps_scores else None)

    def _tokens(self, p: Tensor) -> Tensor:
        """(rows,) the tokens of the next position."""
        i = self._position
        self._position += 1
        if i == self._drafts.shape[1]:
            return self._draw(p)
        assert self._scores is not None
        q = self._probabilities(self._scores[:, i])
        draft = self._drafts[:, i]
        at = draft[:, None]
        kept = self._uniform[:, i] < (p.gather(1, at) / q.gather(1, at))[:, 0]
        if bool((kept | self._state.finished).all()):
            return draft
        rest = (p - q).clamp_(min=0)
        total = rest.sum(1, keepdim=True)
        return torch.where(kept, draft, self._draw(torch.where(total > 0, rest / total, p)))

    def _draw(self, probabilities: Tensor) -> Tensor:
        with self._turn:
            return torch.multinomial(probabilities, 1, generator=self._generator)[:, 0]

    def _probabilities(self, scores: Tensor) -> Tensor:
        probabilities = scores.softmax(-1)
        if self._greedy is None:
            return probabilities
        return torch.where(self._greedy[:, None], _one_hot(scores.argmax(-1), scores), probabilities)


def _drawn(plan: Plan, greedy: Tensor | None) -> bool | Tensor:
    """The rows to find survivors of; a greedy row has its token alone. False where nobody asks."""
    if not plan.kept:
        return False
    return True if greedy is None else ~greedy


def _one_hot(token_ids: Tensor, like: Tensor) -> Tensor:
    return torch.zeros_like(like).scatter_(1, token_ids[:, None], 1.0)
