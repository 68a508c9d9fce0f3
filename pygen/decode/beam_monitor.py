"""What happens around the steps of a beam search: records, stopping, streaming, progress, and rows that went wrong."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from pygen.decode.beam_logprobs import BeamLogprobs
from pygen.decode.monitor import StoppingCriterion, checked_answer, describe_invalid
from pygen.ops import BeamState, BeamStepOutput, beam_finalize


class Search(Protocol):
    """What a monitor looks at: a `BeamState`, or one of groups."""

    @property
    def slots(self) -> Tensor: ...
    @property
    def batch_size(self) -> int: ...
    @property
    def unfinished(self) -> Tensor: ...
    def chosen(self, step: int | Tensor) -> tuple[Tensor, Tensor]: ...


class BeamMonitor:
    """Decides after every step whether the search goes on, with one scalar read.

    criteria: user callables (input_ids, scores) -> bool per row, asked about every candidate: one that they stop is a
        finished hypothesis. Time limit and `cancel` stop every candidate.
    on_invalid: "raise" RuntimeError naming row and step; otherwise a row with NaN or +inf loses its beam.
    scores, logits: whether to keep those of every step, rows in the order of the beams.
    logprobs: keeps those of the chosen tokens; None where they are not asked for.
    """

    def __init__(
        self,
        state: Search,
        *,
        criteria: Sequence[StoppingCriterion] = (),
        on_invalid: str = "raise",
        max_time: float | None = None,
        cancel: threading.Event | None = None,
        stream: SharedTokens | None = None,
        progress: Any = None,
        scores: bool = False,
        logits: bool = False,
        logprobs: BeamLogprobs | None = None,
        keep_order: bool = False,
    ) -> None:
        self.scores: tuple[Tensor, ...] | None = () if scores else None
        self.logits: tuple[Tensor, ...] | None = () if logits else None
        self.logprobs = logprobs
        # For every forward, the row that held each beam; None unless `keep_order`.
        self.orders: list[Tensor] | None = [] if keep_order else None
        self._state = state
        self._criteria = criteria
        self._on_invalid = on_invalid
        self._deadline = None if max_time is None else time.monotonic() + max_time
        self._cancel = cancel
        self._stream = stream
        self._progress = progress

    def cancelled(self) -> bool:
        return self._cancel is not None and self._cancel.is_set()

    @property
    def criteria(self) -> Callable[[Tensor], Tensor | bool] | None:
        """What `beam_step` asks about its candidates, None where nothing but tokens and length can end one."""
        asked = self._criteria or self._deadline is not None or self._cancel is not None
        return self._ends if asked else None

    def record(self, logits: Tensor, processed: Tensor | None) -> None:
        """Takes the logits of a forward and what `Pipeline.processed` returns, both by row, before the beams move."""
        rows = self._state.slots.reshape(-1)
        if self.orders is not None:
            self.orders.append(rows.clone())
        if self.logits is not None:
            self.logits += (logits.float()[rows],)
        if self.scores is not None:
            assert processed is not None
            self.scores += (processed[rows],)
        if self.logprobs is not None:
            assert processed is not None
            self.logprobs.see(processed)

    def must_stop(self, step: int, logits: Tensor, output: BeamStepOutput) -> bool:
        """Reads the step's scalar, raises for an invalid row, and passes on the tokens that are certain."""
        state = self._state
        if self.logprobs is not None:
            self.logprobs.add(step, state.chosen(step))
        signal = state.unfinished
        if self._on_invalid == "raise":
            signal = torch.add(signal, torch.count_nonzero(output.status), alpha=state.batch_size + 1)
        invalid, unfinished = divmod(int(signal), state.batch_size + 1)
        if invalid:
            row = int(output.status.nonzero()[0])
            raise RuntimeError(describe_invalid(row, step, logits, int(output.status[row]), invalid))
        self._pass_on(step)
        return unfinished == 0

    def finish(self, best: Tensor, finish_reason: str, logprobs: Tensor | None) -> None:
        """Streams the tokens of the best hypothesis that were not streamed yet.

        best: (length,) without its prompt. logprobs: (length,) of its tokens, or None.
        """
        if self._stream is not None:
            self._stream.finish(best, finish_reason, logprobs)

    def _pass_on(self, step: int) -> None:
        if self._stream is not None:
            self._stream.advance(step + 1)
        if self._progress is not None:
            self._progress.update(1)

    def _is_late(self) -> bool:
        return self._deadline is not None and time.monotonic() > self._deadline

    def _ends(self, input_ids: Tensor) -> Tensor | bool:
        if self._is_late() or self.cancelled():
            return True
        hit = torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)
        for criterion in self._criteria:
            hit |= checked_answer(criterion, criterion(input_ids, self.scores), hit)
        return hit


class SharedTokens:
    """Sends the tokens that every live beam and every finished hypothesis of a prompt agree on: they are final."""

    def __init__(self, state: BeamState, streamer: Any, logprobs: BeamLogprobs | None) -> None:
        self._state = state
        self._streamer = streamer
        self._logprobs = logprobs
        self._sent = 0

    def advance(self, generated: int) -> None:
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
        # Who is told why a text ends is told with its last token, which any of these may be.
        certain = table[0, : max(shared - 1, 0) if self._tells_reasons else shared]
        if self._logprobs is None or not self._tells_reasons:
            self._send(certain)
        elif len(certain) > self._sent and bool(live.any()):
            logprobs = self._logprobs.of_running(self._sent, generated)
            self._send(certain, logprobs=logprobs[: len(certain) - self._sent])

    def finish(self, best: Tensor, finish_reason: str, logprobs: Tensor | None) -> None:
        self._send(best, finish_reason, None if logprobs is None else logprobs[self._sent :])

    @property
    def _tells_reasons(self) -> bool:
        return hasattr(self._streamer, "put_step")

    def _send(self, tokens: Tensor, finish_reason: str | None = None, logprobs: Tensor | None = None) -> None:
        """Sends what is new of `tokens`; logprobs: of that."""
        fresh = tokens[self._sent :].to("cpu", copy=True)
        if len(fresh) == 0:
            return
        self._sent = len(tokens)
        if not self._tells_reasons:
            self._streamer.put(fresh)
            return
        values = [None] * len(fresh) if logprobs is None else logprobs.cpu().split(1)
        for place, (token, value) in enumerate(zip(fresh.split(1), values, strict=True), start=1):
            self._streamer.put_step(token, value, [finish_reason if place == len(fresh) else None])
