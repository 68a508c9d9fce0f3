"""What an eager step of a beam search does besides its choice: records, the caller's criteria, its report."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pygen.decode.beam_monitor import BeamMonitor
from pygen.decode.observer import StoppingCriterion, checked_answer
from pygen.ops import BeamState, BeamStepOutput, RowStatus, beam_finalize
from pygen.plan.beam_logprobs import BeamLogprobs, Beams
from pygen.plan.report import InvalidRows


class BeamRecorder:
    """Keeps what the caller asked to get back of every step.

    scores, logits: those of every step, rows in the order of the beams; None where they are not kept.
    logprobs: keeps those of the chosen tokens; None where they are not asked for.
    orders: for every forward, the row that held each beam; None unless `keep_order`.
    """

    def __init__(
        self,
        state: Beams,
        *,
        scores: bool = False,
        logits: bool = False,
        logprobs: BeamLogprobs | None = None,
        keep_order: bool = False,
    ) -> None:
        self.scores: tuple[Tensor, ...] | None = () if scores else None
        self.logits: tuple[Tensor, ...] | None = () if logits else None
        self.logprobs = logprobs
        self.orders: list[Tensor] | None = [] if keep_order else None
        self._state = state
        self._keeps = scores or logits or keep_order or logprobs is not None

    def see(self, logits: Tensor, processed: Tensor | None) -> None:
        """Takes the logits of a forward and what `Pipeline.processed` returns, both by row, before the beams move."""
        if not self._keeps:
            return
        rows = self._state.slots.reshape(-1)
        if self.orders is not None:
            self.orders.append(rows.clone())
        if self.logits is not None:
            self.logits += (logits.float()[rows],)
        if self.scores is not None:
            assert processed is not None
            self.scores += (processed[rows],)
        if self.logprobs is not None:
            scores = logits if self.logprobs.raw else processed
            assert scores is not None
            self.logprobs.see(scores)

    def add(self, step: int) -> None:
        """Takes what `step` has chosen, after the beams moved."""
        if self.logprobs is not None:
            self.logprobs.add(step, self._state.chosen(step))


def candidate_criteria(
    monitor: BeamMonitor, recorder: BeamRecorder, criteria: Sequence[StoppingCriterion]
) -> Callable[[Tensor], Tensor | bool] | None:
    """The `stopping_criteria` of `beam_step`; None where only tokens and length can end a candidate.

    criteria: user callables (input_ids, scores) -> bool per row. A candidate that they stop is a finished hypothesis.
        Time limit and cancellation stop every candidate.
    """
    if not criteria and not monitor.may_give_up:
        return None

    def ends(input_ids: Tensor) -> Tensor | bool:
        if monitor.gave_up():
            return True
        hit = torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)
        for criterion in criteria:
            hit |= checked_answer(criterion, criterion(input_ids, recorder.scores), hit)
        return hit

    return ends


class EagerBeamReport:
    """The `BeamReport` of the latest step, at the price of one scalar read."""

    unfinished: int

    def __init__(self, state: Beams, *, on_invalid: str = "raise", shared: SharedTokens | None = None) -> None:
        """on_invalid: "raise" reports the rows without a choice; otherwise a row with NaN or +inf loses its beam.

        shared: finds the tokens for `certain`; None without a streamer.
        """
        self._state = state
        self._raises = on_invalid == "raise"
        self._base = state.batch_size + 1
        self._shared = shared

    def read(self, step: int, logits: Tensor, output: BeamStepOutput) -> EagerBeamReport:
        """The report of `step`, the latest, which chose `output` from `logits`."""
        state, self._step, self._logits, self._status = self._state, step, logits, output.status
        signal = state.unfinished
        if self._raises:
            # One number holds both counts, since each read of a number waits for the device.
            signal = torch.add(signal, torch.count_nonzero(output.status), alpha=self._base)
        self._num_invalid, self.unfinished = divmod(int(signal), self._base)
        return self

    def invalid(self) -> InvalidRows | None:
        found = InvalidRows.find(self._status != RowStatus.OK, self._status) if self._num_invalid else None
        return None if found is None else found.located(self._logits)

    def certain(self, sent: int, *, with_reason: bool) -> tuple[Tensor, Tensor | None]:
        assert self._shared is not None
        return self._shared.certain(self._step + 1, sent, with_reason=with_reason)


class SharedTokens:
    """The tokens that every live beam and every finished hypothesis of prompt 0 agree on: they are final."""

    def __init__(self, state: BeamState, logprobs: BeamLogprobs | None) -> None:
        self._state = state
        self._logprobs = logprobs

    def certain(self, generated: int, sent: int, *, with_reason: bool) -> tuple[Tensor, Tensor | None]:
        """See `BeamReport.certain`; generated: steps so far."""
        state = self._state
        live = state.running_scores[0] > -math.inf
        common = [state.sequences(generated)[live][:, state.prompt_length :]]
        ended = state.finished_steps[0] >= 0
        if bool(ended.any()):
            common.append(beam_finalize(state, state.num_beams).sequences[ended, state.prompt_length :])
        width = min([generated, *(state.finished_steps[0, ended] + 1).tolist()])
        table = torch.cat([part[:, :width] for part in common])
        differs = (table != table[0]).any(0).nonzero()
        shared = int(differs[0]) if len(differs) else width
        # The finish reason goes with the last token. Any token may turn out to be the last, so hold one back.
        tokens = table[0, : max(shared - 1, 0) if with_reason else shared].to("cpu", copy=True)
        if self._logprobs is None or not with_reason:
            return tokens, None
        if len(tokens) <= sent or not bool(live.any()):
            return tokens[:sent], None
        return tokens, self._logprobs.of_running(sent, generated)[: len(tokens) - sent].cpu()
