"""What an eager step does on the device after its choice: records, the caller's criteria, ends of invalid rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pygen.decode.kept import KeptCollector
from pygen.ops import DecodeState, KeptRows, RowStatus, TopLogprobs, token_logprobs
from pygen.ops._bookkeeping import end_invalid_rows, end_rows
from pygen.ops._growth import first_capacity, grown_capacity, widened
from pygen.outputs import KeptSets
from pygen.plan.pipeline import StepResult
from pygen.plan.report import InvalidRows

StoppingCriterion = Callable[[Tensor, "tuple[Tensor, ...] | None"], "Tensor | bool"]


class Recorder:
    """Keeps what the caller asked to get back of every step."""

    def __init__(
        self,
        state: DecodeState,
        max_new_tokens: int,
        *,
        scores: bool,
        logits: bool,
        top_logprobs: int | None,
        kept: bool,
    ):
        """top_logprobs: None records no log-probabilities, 0 those of the chosen tokens, n > 0 also the n best."""
        self.scores: tuple[Tensor, ...] | None = () if scores else None
        self.logits: tuple[Tensor, ...] | None = () if logits else None
        self._state = state
        self._num_top = top_logprobs
        self.keeps = scores or logits or kept or top_logprobs is not None
        self._kept = KeptCollector(state.rows, state.token_ids.device) if kept else None
        if top_logprobs is not None:
            shape, device = (state.rows, first_capacity(max_new_tokens)), state.token_ids.device
            self._logprobs = torch.zeros(shape, dtype=torch.float32, device=device)
            self._top_ids = torch.full((*shape, top_logprobs), -1, dtype=torch.int64, device=device)
            self._top_logprobs = torch.full((*shape, top_logprobs), -math.inf, device=device)

    def add(self, step: int, logits: Tensor, result: StepResult) -> None:
        if self.scores is not None:
            assert result.scores is not None
            self.scores += (result.scores,)
        if self.logits is not None:
            self.logits += (logits.to(torch.float32, copy=True),)
        if self._kept is not None:
            assert isinstance(result.output.kept, KeptRows)
            self._kept.add(result.output.kept)
        if self._num_top is not None:
            assert result.output.logprobs is not None and result.output.top_logprobs is not None
            if step >= self._logprobs.shape[1]:
                self._grow(step + 1)
            self._logprobs[:, step] = result.output.logprobs
            self._top_ids[:, step] = result.output.top_logprobs.token_ids[:, : self._num_top]
            self._top_logprobs[:, step] = result.output.top_logprobs.logprobs[:, : self._num_top]

    def _grow(self, steps: int) -> None:
        capacity = grown_capacity(self._logprobs.shape[1], steps)
        self._logprobs = widened(self._logprobs, capacity)
        self._top_ids = widened(self._top_ids, capacity, dim=1)
        self._top_logprobs = widened(self._top_logprobs, capacity, dim=1)

    def step_logprobs(self, step: int) -> Tensor | None:
        """(rows,) float32 on the CPU, of the tokens of `step`; None where they are not kept."""
        return None if self._num_top is None else self._logprobs[:, step].cpu()

    def kept(self, steps: int) -> KeptSets | None:
        return None if self._kept is None else self._kept.sets(steps)

    def logprobs(self, steps: int) -> tuple[Tensor | None, TopLogprobs | None]:
        if self._num_top is None:
            return None, None
        after_end = torch.arange(steps, device=self._logprobs.device) >= self._state.num_generated[:, None]
        chosen = self._logprobs[:, :steps].masked_fill(after_end, 0.0)
        if self._num_top == 0:
            return chosen, None
        ids = self._top_ids[:, :steps].masked_fill(after_end[..., None], -1)
        return chosen, TopLogprobs(ids, self._top_logprobs[:, :steps].masked_fill(after_end[..., None], -math.inf))


class StepObserver:
    """Queues the bookkeeping of eager steps, and is the `StepReport` of the latest, at the price of one scalar read.

    criteria: callables (input_ids, scores) -> bool per row. Rows that they stop emit pad afterwards if `pads`.
    on_invalid: "raise" reports the rows without a choice, "greedy" keeps the token that the op fell back to, "eos" ends
        the row there.
    num_raw_logprobs: see `Plan`.
    """

    def __init__(
        self,
        state: DecodeState,
        recorder: Recorder,
        *,
        criteria: Sequence[StoppingCriterion] = (),
        pads: bool = True,
        on_invalid: str = "raise",
        num_raw_logprobs: int = 0,
    ) -> None:
        self._state = state
        self._recorder = recorder
        self._criteria = criteria
        self._pads = pads
        self._on_invalid = on_invalid
        self._num_raw_logprobs = num_raw_logprobs
        self._stopped = torch.zeros_like(state.finished)
        self._base = state.rows + 1
        self.unfinished = state.rows

    def observe(self, step: int, logits: Tensor, result: StepResult) -> None:
        """Queues the bookkeeping of `step`, which chose `result` from `logits`."""
        state, output = self._state, result.output
        if self._on_invalid == "eos":
            end_invalid_rows(state, output.token_ids, output.status, step, logits.shape[-1])
        if self._num_raw_logprobs > 0:
            raw = token_logprobs(logits, output.token_ids, top=self._num_raw_logprobs)
            result = result._replace(output=output._replace(logprobs=raw.logprobs, top_logprobs=raw.top_logprobs))
        if self._recorder.keeps:
            self._recorder.add(step, logits, result)
        if self._criteria:
            self._apply_criteria(step)
        signal = state.unfinished if self._pads or not self._criteria else (~self._stopped).sum()
        if self._on_invalid == "raise":
            # One number holds both counts, since each read of a number waits for the device.
            signal = torch.add(signal, torch.count_nonzero(output.status), alpha=self._base)
        self._step, self._logits, self._status, self._signal = step, logits, output.status, signal

    def report(self) -> StepObserver:
        """The report of the step that was observed last."""
        self._num_invalid, self.unfinished = divmod(int(self._signal), self._base)
        return self

    def invalid(self) -> InvalidRows | None:
        if self._num_invalid == 0:
            return None
        # Rows that had finished before do not matter.
        bad = (self._status != RowStatus.OK) & (self._state.num_generated == self._step + 1)
        found = InvalidRows.find(bad, self._status)
        return None if found is None else found.located(self._logits)

    def token_ids(self) -> Tensor:
        return self._state.column(self._step).to("cpu", copy=True)

    def logprobs(self) -> Tensor | None:
        return self._recorder.step_logprobs(self._step)

    def reasons(self) -> list[str | None]:
        stopped, finished = torch.stack([self._stopped, self._state.finished]).tolist()
        ended = zip(stopped, finished, strict=True)
        return ["stop" if by_criterion else "eos" if by_token else None for by_criterion, by_token in ended]

    def _apply_criteria(self, step: int) -> None:
        state = self._state
        input_ids = state.tokens(step + 1)
        hit = torch.zeros_like(state.finished)
        for criterion in self._criteria:
            hit |= checked_answer(criterion, criterion(input_ids, self._recorder.scores), hit)
        self._stopped |= hit & ~state.finished
        if self._pads:
            end_rows(state, hit)


def checked_answer(criterion: StoppingCriterion, answer: object, hit: Tensor) -> Tensor:
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
