"""One row of a batch: a text that is being generated."""

from __future__ import annotations

import inspect
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from pygen import rng
from pygen.batch.request import Request
from pygen.batch.results import BatchResult, BatchTimes
from pygen.decode.observer import checked_answer
from pygen.knobs import NEUTRAL
from pygen.ops import (
    DecodeState,
    KeptTokens,
    RowStatus,
    SampleOutput,
    TokenLogprobs,
    TopLogprobs,
    prepare_sample,
    token_logprobs,
)
from pygen.plan.pipeline import Chooser, bind_plan
from pygen.plan.report import InvalidRows
from pygen.plan.stages import Segment

if TYPE_CHECKING:
    from pygen.plan.plan import Plan

_KEPT_LIMIT: int = inspect.signature(prepare_sample).parameters["kept_limit"].default
# Longer lists of suppressed ids, of one row, would widen those of all rows.
_MAX_SUPPRESSED = 256


class ChosenToken(NamedTuple):
    """What one row learns of its step. The next step may overwrite its tensors, except those of `kept`.

    logprob, top: of the distribution that the row asks for. kept: ids int32, and the log of their mass; the ids are
        None where there are more than the limit.
    logits: (vocab_size,), that the token was chosen from; None where they are gone.
    """

    token_id: int
    status: RowStatus
    logprob: float | None
    top: TopLogprobs | None
    kept: tuple[Tensor | None, float] | None
    logits: Tensor | None


class Row:
    """The text of one returned sequence, and the decisions that concern it alone.

    length: positions in the cache. token_ids: generated. end: why the row has ended; None while it goes on.
    seed: the signed bit pattern of the row's seed. kept_limit: of its kept tokens; None where it wants none.
    is_alone: whether its scores need more than the op that all rows share, so that it chooses its tokens by itself.
    is_tainted: whether scores of it were invalid, so that its keys and values may be too.
    """

    def __init__(self, request: Request, copy: int) -> None:
        self.request, self.copy = request, copy
        self.plan: Plan = request.plan_of(copy)
        self.is_alone = any(map(_is_alone, self.plan.segments))
        self.kept_limit: int | None = self.plan.kept.get("kept_limit", _KEPT_LIMIT) if self.plan.kept else None
        self.seed = rng.as_int64(request.seeds[copy]) if request.seeds else 0
        self.length = len(request.prompt_ids)
        self.token_ids: list[int] = []
        self.end: str | None = None
        self.error: Exception | None = None
        self.is_tainted = False
        self._logprobs: list[float] = []
        self._tops: list[TopLogprobs] = []
        self._kept: list[tuple[Tensor | None, float]] = []
        self._first_token_at: float | None = None
        max_time = request.call.stopping.max_time
        self._deadline = None if max_time is None else time.monotonic() + max_time
        self._eos = frozenset(request.call.stopping.eos_token_ids or ())
        self._state: DecodeState | None = None
        self._choose: Chooser | None = None
        self._segment: Segment | None = None

    @property
    def on_invalid(self) -> str:
        return str(vars(self.request.call.config)["on_invalid"])

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

    def choose(self, logits: Tensor) -> tuple[SampleOutput, TokenLogprobs | None]:
        """Chooses the next token from `logits` (1, vocab_size) as a call of this prompt alone does."""
        if self._state is None:
            call = self.request.call
            self._state = DecodeState.create(
                call.prompt.input_ids, call.lengths.max_new_tokens, step_capacity=1, pad_token_id=call.tokens.pad or 0
            )
            self._choose = bind_plan(self.plan, logits, self._state)
        assert self._choose is not None
        output = self._choose(logits, self.step).output
        end_invalid([self], output, logits.shape[1])
        num_raw = self.plan.num_raw_logprobs
        return output, token_logprobs(logits, output.token_ids, top=num_raw) if num_raw > 0 else None

    def take(self, chosen: ChosenToken) -> None:
        """Takes over the token of a step, and decides whether the row ends.

        A callable of the caller's that fails, and scores without a choice, end this row with the error.
        """
        request = self.request
        try:
            self._check(chosen.status, chosen.logits)
            self.token_ids.append(chosen.token_id)
            self._record(chosen)
            if self._first_token_at is None:
                self._first_token_at = time.monotonic()
            self.end = self.end or self._reason(chosen.token_id)
            request.sink.put_token(self.copy, chosen.token_id, chosen.logprob if self._logprobs else None, self.end)
        except Exception as error:
            self.end, self.error = "error", error

    def result(self) -> BatchResult:
        request, text = self.request, None
        assert self.end is not None
        try:
            text = _text(request.tokenizer, self.token_ids)
        except Exception as error:
            # A row that has no result would never end for the one who waits for it.
            self.end, self.error = "error", self.error or error
        config = request.call.config
        tops = TopLogprobs(*map(torch.cat, zip(*self._tops, strict=True))) if self._tops else None
        return BatchResult(
            index=request.index,
            copy=self.copy,
            prompt_ids=request.prompt_ids,
            token_ids=self.token_ids,
            finish_reason=self.end,
            times=BatchTimes(request.queued, self._first_token_at, time.monotonic()),
            text=text,
            logprobs=self._logprobs if getattr(config, "output_logprobs", None) else None,
            top_logprobs=tops,
            kept=None if self.kept_limit is None else _kept_tokens(self._kept),
            seed=request.seed,
            error=self.error,
        )

    def _check(self, status: RowStatus, logits: Tensor | None) -> None:
        if status == RowStatus.OK:
            return
        self.is_tainted = True
        if self.on_invalid == "raise":
            invalid = InvalidRows(0, status, 1, None)
            raise RuntimeError((invalid if logits is None else invalid.located(logits[None])).describe(self.step))
        if self.on_invalid == "eos":
            self.end = "eos"

    def _record(self, chosen: ChosenToken) -> None:
        """Keeps what the prompt asks to get back of every step."""
        config = self.request.call.config
        if getattr(config, "output_logprobs", None):
            assert chosen.logprob is not None and chosen.top is not None
            self._logprobs.append(chosen.logprob)
            num_top = getattr(config, "top_logprobs", None)
            if num_top:
                self._tops.append(TopLogprobs(*(part[None, :num_top].clone() for part in chosen.top)))
        if self.kept_limit is not None:
            assert chosen.kept is not None
            stored, log_mass = chosen.kept
            # Another row may have a higher limit.
            self._kept.append((None if stored is None or len(stored) > self.kept_limit else stored, log_mass))

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


def end_invalid(rows: Sequence[Row], output: SampleOutput, vocab_size: int) -> None:
    """Gives rows without a choice their end-of-sequence token, as far as their `on_invalid` is "eos"."""
    if all(row.on_invalid != "eos" for row in rows):
        return
    ends = [
        next(end for end in row.plan.ends_invalid_rows if 0 <= end < vocab_size) if row.on_invalid == "eos" else -1
        for row in rows
    ]
    ending = torch.tensor(ends, device=output.token_ids.device)
    invalid = (output.status != RowStatus.OK) & (ending >= 0)
    output.token_ids.copy_(torch.where(invalid, ending, output.token_ids))


def _is_alone(segment: Segment) -> bool:
    knobs = segment.last.knobs
    shared = NEUTRAL.keys() | {"suppress"}
    return bool(segment.early) or not knobs.keys() <= shared or len(knobs.get("suppress", ())) > _MAX_SUPPRESSED


def _kept_tokens(kept: list[tuple[Tensor | None, float]]) -> KeptTokens:
    """The kept tokens of a row, a row of the result for each token."""
    ids = [torch.empty(0, dtype=torch.int32) if stored is None else stored for stored, _ in kept]
    offsets = torch.tensor([0, *map(len, ids)]).cumsum(0)
    log_mass = torch.tensor([mass for _, mass in kept], dtype=torch.float32)
    complete = torch.tensor([stored is not None for stored, _ in kept], dtype=torch.bool)
    return KeptTokens(torch.cat([torch.empty(0, dtype=torch.int32), *ids]), offsets, log_mass, complete)


def _text(tokenizer: Any, token_ids: list[int]) -> str | None:
    return None if tokenizer is None else str(tokenizer.decode(token_ids, skip_special_tokens=True))
