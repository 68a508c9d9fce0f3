"""One row of a batch: a text that is being generated."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pygen import rng
from pygen.batch.request import Request
from pygen.batch.results import BatchResult, BatchTimes
from pygen.decode.observer import checked_answer
from pygen.knobs import NEUTRAL
from pygen.ops import DecodeState, RowStatus, SampleOutput, TopLogprobs
from pygen.plan.pipeline import Chooser, bind_plan
from pygen.plan.report import InvalidRows
from pygen.plan.stages import Segment

if TYPE_CHECKING:
    from pygen.plan.plan import Plan

# Longer lists of suppressed ids, of one row, would widen those of all rows.
_MAX_SUPPRESSED = 256


class Row:
    """The text of one returned sequence, and the decisions that concern it alone.

    length: positions in the cache. token_ids: generated. end: why the row has ended; None while it goes on.
    seed: the signed bit pattern of the row's seed.
    is_alone: whether its scores need more than the op that all rows share, so that it chooses its tokens by itself.
    """

    def __init__(self, request: Request, copy: int) -> None:
        self.request, self.copy = request, copy
        self.plan: Plan = request.plan_of(copy)
        self.is_alone = any(map(_is_alone, self.plan.segments))
        self.seed = rng.as_int64(request.seeds[copy]) if request.seeds else 0
        self.length = len(request.prompt_ids)
        self.token_ids: list[int] = []
        self.end: str | None = None
        self.error: Exception | None = None
        self._logprobs: list[float] = []
        self._tops: list[TopLogprobs] = []
        self._first_token_at: float | None = None
        max_time = request.call.stopping.max_time
        self._deadline = None if max_time is None else time.monotonic() + max_time
        self._eos = frozenset(request.call.stopping.eos_token_ids or ())
        self._state: DecodeState | None = None
        self._choose: Chooser | None = None
        self._segment: Segment | None = None

    @property
    def step(self) -> int:
        """Tokens generated so far."""
        return len(self.token_ids)

    @property
    def last_token(self) -> int:
        return self.token_ids[-1]

    @property
    def text_ids(self) -> list[int]:
        return self.request.prompt_ids + self.token_ids

    def segment(self) -> Segment:
        """The stages of the next step; the same object while they do not change."""
        segment, step = self._segment, self.step
        if segment is None or (segment.end is not None and step >= segment.end):
            segment = self._segment = self.plan.segment(step)
        return segment

    def choose(self, logits: Tensor) -> SampleOutput:
        """Chooses the next token from `logits` (1, vocab_size) as a call of this prompt alone does."""
        if self._state is None:
            call = self.request.call
            self._state = DecodeState.create(
                call.prompt.input_ids, call.lengths.max_new_tokens, step_capacity=1, pad_token_id=call.tokens.pad or 0
            )
            self._choose = bind_plan(self.plan, logits, self._state)
        assert self._choose is not None
        return self._choose(logits, self.step).output

    def take(
        self, output: SampleOutput, at: int, token_id: int, status: int, logprob: float | None, logits: Tensor | None
    ) -> None:
        """Takes over the token of row `at` of a step's output, and decides whether the row ends.

        A callable of the caller's that fails, and scores without a choice, end this row with the error.
        logits: (vocab_size,), of the step; None where they are gone.
        """
        request = self.request
        try:
            self._check(RowStatus(status), logits)
            self.token_ids.append(token_id)
            logprob = self._take_logprobs(output, at, logprob)
            if self._first_token_at is None:
                self._first_token_at = time.monotonic()
            self.end = self.end or self._reason(token_id)
            request.sink.put_token(self.copy, token_id, logprob, self.end)
        except Exception as error:
            self.end, self.error = "error", error

    def result(self) -> BatchResult:
        request = self.request
        assert self.end is not None
        config = request.call.config
        tops = None
        if self._tops:
            tops = TopLogprobs(*(torch.cat(parts) for parts in zip(*self._tops, strict=True)))
        return BatchResult(
            index=request.index,
            copy=self.copy,
            prompt_ids=request.prompt_ids,
            token_ids=self.token_ids,
            finish_reason=self.end,
            times=BatchTimes(request.queued, self._first_token_at, time.monotonic()),
            text=_text(request.tokenizer, self.token_ids),
            logprobs=self._logprobs if getattr(config, "output_logprobs", None) else None,
            top_logprobs=tops,
            seed=request.seed,
            error=self.error,
        )

    def _check(self, status: RowStatus, logits: Tensor | None) -> None:
        if status == RowStatus.OK:
            return
        on_invalid = vars(self.request.call.config)["on_invalid"]
        if on_invalid == "raise":
            invalid = InvalidRows(0, status, 1, None)
            raise RuntimeError((invalid if logits is None else invalid.located(logits[None])).describe(self.step))
        if on_invalid == "eos":
            self.end = "eos"

    def _take_logprobs(self, output: SampleOutput, at: int, logprob: float | None) -> float | None:
        config = self.request.call.config
        if not getattr(config, "output_logprobs", None):
            return None
        assert logprob is not None and output.top_logprobs is not None
        self._logprobs.append(logprob)
        num_top = getattr(config, "top_logprobs", None)
        if num_top:
            self._tops.append(TopLogprobs(*(part[at : at + 1, :num_top].cpu().clone() for part in output.top_logprobs)))
        return logprob

    def _reason(self, token_id: int) -> str | None:
        """Why the row ends after its newest token, by the rules of `generate`."""
        call = self.request.call
        if token_id in self._eos:
            return "eos"
        if call.criteria:
            input_ids = torch.tensor([self.text_ids], device=call.prompt.input_ids.device)
            row = torch.zeros(1, dtype=torch.bool, device=input_ids.device)
            if any(bool(checked_answer(c, c(input_ids, None), row).any()) for c in call.criteria):
                return "stop"
        if self._deadline is not None and time.monotonic() > self._deadline:
            return "stop"
        return "length" if self.step >= call.lengths.max_new_tokens else None


def _is_alone(segment: Segment) -> bool:
    knobs = segment.last.knobs
    shared = NEUTRAL.keys() | {"suppress"}
    return bool(segment.early) or not knobs.keys() <= shared or len(knobs.get("suppress", ())) > _MAX_SUPPRESSED


def _text(tokenizer: Any, token_ids: list[int]) -> str | None:
    return None if tokenizer is None else str(tokenizer.decode(token_ids, skip_special_tokens=True))
