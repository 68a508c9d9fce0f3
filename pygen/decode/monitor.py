"""What happens around the steps of a loop: records, stopping, streaming, progress, and rows that went wrong."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pygen.ops import DecodeState, RowStatus, TopLogprobs
from pygen.ops._room import first_room, grown_room, widened
from pygen.plan.pipeline import Choice

StoppingCriterion = Callable[[Tensor, "tuple[Tensor, ...] | None"], "Tensor | bool"]


class Recorder:
    """Keeps what the caller asked to get back of every step."""

    def __init__(
        self, state: DecodeState, max_new_tokens: int, *, scores: bool, logits: bool, top_logprobs: int | None
    ):
        """top_logprobs: None records no log-probabilities, 0 those of the chosen tokens, n > 0 also the n best."""
        self.scores: tuple[Tensor, ...] | None = () if scores else None
        self.logits: tuple[Tensor, ...] | None = () if logits else None
        self._state = state
        self._num_top = top_logprobs
        if top_logprobs is not None:
            shape, device = (state.rows, first_room(max_new_tokens)), state.token_ids.device
            self._logprobs = torch.zeros(shape, dtype=torch.float32, device=device)
            self._top_ids = torch.full((*shape, top_logprobs), -1, dtype=torch.int64, device=device)
            self._top_logprobs = torch.full((*shape, top_logprobs), -math.inf, device=device)

    def add(self, step: int, logits: Tensor, choice: Choice) -> None:
        if self.scores is not None:
            assert choice.scores is not None
            self.scores += (choice.scores,)
        if self.logits is not None:
            self.logits += (logits.to(torch.float32, copy=True),)
        if self._num_top is not None:
            assert choice.output.logprobs is not None and choice.output.top_logprobs is not None
            if step >= self._logprobs.shape[1]:
                self._grow(step + 1)
            self._logprobs[:, step] = choice.output.logprobs
            self._top_ids[:, step] = choice.output.top_logprobs.token_ids[:, : self._num_top]
            self._top_logprobs[:, step] = choice.output.top_logprobs.logprobs[:, : self._num_top]

    def _grow(self, steps: int) -> None:
        room = grown_room(self._logprobs.shape[1], steps)
        self._logprobs = widened(self._logprobs, room)
        self._top_ids = widened(self._top_ids, room, dim=1)
        self._top_logprobs = widened(self._top_logprobs, room, dim=1)

    def step_logprobs(self, step: int) -> Tensor | None:
        """(rows,) float32 on the CPU, of the tokens of `step`; None where they are not kept."""
        return None if self._num_top is None else self._logprobs[:, step].cpu()

    def logprobs(self, steps: int) -> tuple[Tensor | None, TopLogprobs | None]:
        if self._num_top is None:
            return None, None
        after_end = torch.arange(steps, device=self._logprobs.device) >= self._state.num_generated[:, None]
        chosen = self._logprobs[:, :steps].masked_fill(after_end, 0.0)
        if self._num_top == 0:
            return chosen, None
        ids = self._top_ids[:, :steps].masked_fill(after_end[..., None], -1)
        return chosen, TopLogprobs(ids, self._top_logprobs[:, :steps].masked_fill(after_end[..., None], -math.inf))


class Monitor:
    """Decides after every step whether to go on, with one scalar read.

    `observe` only queues tensor work, so a loop may launch the next forward before `must_stop` waits for the answer.

    criteria: callables (input_ids, scores) -> bool per row. Rows that they stop emit pad afterwards if `pads`.
    on_invalid: "raise" RuntimeError naming row and step, "greedy" keep the best token that the op fell back to,
        "eos" end the row there.
    streamer: one with a method `put_step` gets the tokens of a step with their log-probabilities, or None, and why each
        row has ended, or None while it goes on; any other gets the tokens.
    """

    def __init__(
        self,
        state: DecodeState,
        recorder: Recorder,
        *,
        criteria: Sequence[StoppingCriterion] = (),
        pads: bool = True,
        on_invalid: str = "raise",
        max_time: float | None = None,
        cancel: threading.Event | None = None,
        streamer: Any = None,
        progress: Any = None,
    ) -> None:
        self._state = state
        self._recorder = recorder
        self._criteria = criteria
        self._pads = pads
        self._on_invalid = on_invalid
        self._deadline = None if max_time is None else time.monotonic() + max_time
        self._cancel = cancel
        self._streamer = streamer
        self._progress = progress
        self._stopped = torch.zeros_like(state.finished)
        self._cut_short = False

    def cancelled(self) -> bool:
        """Whether the caller gave up; from then on the rows that still run end here."""
        self._cut_short |= self._cancel is not None and self._cancel.is_set()
        return self._cut_short

    def observe(self, step: int, logits: Tensor, choice: Choice) -> Tensor:
        """Queues the bookkeeping of `step`; returns the one element that `must_stop` will read."""
        state, status = self._state, choice.output.status
        self._recorder.add(step, logits, choice)
        if self._on_invalid == "eos":
            self._end_invalid_rows(step, status, logits.shape[-1])
        if self._criteria:
            self._apply_criteria(step)
        running = state.unfinished if self._pads or not self._criteria else (~self._stopped).sum()
        if self._on_invalid != "raise":
            return running
        return torch.add(running, torch.count_nonzero(status), alpha=state.rows + 1)

    def must_stop(self, step: int, signal: Tensor, logits: Tensor, choice: Choice) -> bool:
        """Reads `signal`, raises for an invalid row, and passes the tokens on."""
        invalid, running = divmod(int(signal), self._state.rows + 1)
        if invalid:
            self._raise_invalid(step, logits, choice.output.status)
        return self._pass_on(step, running)

    def finish_reasons(self) -> list[str]:
        """Why every row ended: "eos", "stop" or "length"."""
        return [reason or ("stop" if self._cut_short else "length") for reason in self._reasons()]

    def _pass_on(self, step: int, running: int) -> bool:
        """Tells streamer and progress bar of `step`, after which `running` rows go on; whether it was the last."""
        if running > 0:
            self._cut_short |= self._deadline is not None and time.monotonic() > self._deadline
        over = running == 0 or self.cancelled()
        if self._streamer is not None:
            self._send(step, over)
        if self._progress is not None:
            self._progress.update(1)
        # A streamer may have cancelled.
        return over or self.cancelled()

    def _reasons(self) -> list[str | None]:
        """Why rows have ended so far; None for those that go on."""
        stopped, finished = torch.stack([self._stopped, self._state.finished]).tolist()
        ended = zip(stopped, finished, strict=True)
        return ["stop" if by_criterion else "eos" if by_token else None for by_criterion, by_token in ended]

    def _tokens(self, step: int) -> Tensor:
        """(rows,) int64 on the CPU, of the streamer's own."""
        return self._state.column(step).to("cpu", copy=True)

    def _logprobs(self, step: int) -> Tensor | None:
        return self._recorder.step_logprobs(step)

    def _send(self, step: int, over: bool) -> None:
        tokens = self._tokens(step)
        if not hasattr(self._streamer, "put_step"):
            self._streamer.put(tokens)
            return
        over |= self._state.max_new_tokens == step + 1
        reasons = self.finish_reasons() if over else self._reasons()
        self._streamer.put_step(tokens, self._logprobs(step), reasons)

    def _end_invalid_rows(self, step: int, status: Tensor, vocab_size: int) -> None:
        state = self._state
        # A row counts this step exactly if it was not finished before it.
        bad = (status != RowStatus.OK) & (state.num_generated == step + 1)
        column = state.prompt_length + step
        ended = torch.where(bad, state.ending_token(vocab_size), state.token_ids[:, column])
        state.token_ids[:, column] = ended
        state.history[:, column] = ended
        state.finished |= bad
        state.unfinished.copy_((~state.finished).sum())

    def _apply_criteria(self, step: int) -> None:
        state = self._state
        input_ids = state.tokens(step + 1)
        hit = torch.zeros_like(state.finished)
        for criterion in self._criteria:
            hit |= checked_answer(criterion, criterion(input_ids, self._recorder.scores), hit)
        self._stopped |= hit & ~state.finished
        if self._pads:
            state.finished |= hit
            state.unfinished.copy_((~state.finished).sum())

    def _raise_invalid(self, step: int, logits: Tensor, status: Tensor) -> None:
        bad = (status != RowStatus.OK) & (self._state.num_generated == step + 1)
        rows = bad.nonzero()[:, 0].tolist()
        if not rows:
            return
        raise RuntimeError(describe_invalid(rows[0], step, logits, int(status[rows[0]]), len(rows)))


def checked_answer(criterion: StoppingCriterion, answer: Any, hit: Tensor) -> Tensor:
    """What `criterion` said, as a bool tensor that broadcasts with `hit` (rows,)."""
    answer = torch.as_tensor(answer, device=hit.device)
    name = getattr(criterion, "__name__", type(criterion).__name__)
    if answer.dtype != torch.bool:
        raise TypeError(f"`stopping_criteria`: {name} must return bools, got {answer.dtype}")
    if answer.shape not in ((), hit.shape):
        raise ValueError(
            f"`stopping_criteria`: {name} must return a bool or shape {tuple(hit.shape)}, "
            f"got shape {tuple(answer.shape)}"
        )
    checked: Tensor = answer
    return checked


def describe_invalid(row: int, step: int, logits: Tensor | None, status: int, count: int) -> str:
    """What is wrong with the first of `count` rows whose scores allow no choice. logits: None where they are gone."""
    kind, at = RowStatus(status), ""
    if logits is not None:
        found = {RowStatus.NAN: logits[row].isnan(), RowStatus.POS_INF: logits[row] == math.inf}.get(kind)
        at = f", first at token id {int(found.int().argmax())}" if found is not None and bool(found.any()) else ""
    what = {RowStatus.NAN: "NaN", RowStatus.POS_INF: "+inf"}.get(kind, "no token that is allowed")
    others = f" ({count} rows in all)" if count > 1 else ""
    return f"the scores of row {row} at step {step} hold {what}{at}{others}; `on_invalid`='greedy' or 'eos' goes on"
