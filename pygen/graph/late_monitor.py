"""The monitor of a loop that launches ahead: it knows a step by its message alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from pygen.decode.monitor import Monitor, Recorder, describe_invalid
from pygen.graph.stop_poll import HostRows, Received
from pygen.ops import DecodeState, RowStatus, SampleOutput
from pygen.plan.pipeline import Choice


class LateMonitor(Monitor):
    """A `Monitor` that never reads the device, where later steps may have been taken already; see there."""

    def __init__(self, state: DecodeState, recorder: Recorder, **arguments: Any) -> None:
        super().__init__(state, recorder, **arguments)
        eos = None if state.eos_token_ids is None else state.eos_token_ids.cpu()
        self._rows = HostRows(state.rows, eos)
        self._received: Received | None = None

    def record(self, step: int, logits: Tensor, output: SampleOutput) -> None:
        """Queues what the caller asked to keep of a step that was just launched."""
        self._recorder.add(step, logits, Choice(output, None))

    def look(self, step: int, received: Received, logits_at: Callable[[int], Tensor]) -> bool:
        """Whether `step`, whose message is `received`, was the last; raises for an invalid row, and passes tokens on.

        logits_at: the logits (rows, vocab_size) of a step, made again.
        """
        if self._on_invalid == "raise":
            bad = (received.status != RowStatus.OK) & ~self._rows.finished
            rows = bad.nonzero()[:, 0].tolist()
            if rows:
                status = int(received.status[rows[0]])
                raise RuntimeError(describe_invalid(rows[0], step, logits_at(step), status, len(rows)))
        self._rows.advance(received.token_ids)
        self._received = received
        return self._pass_on(step, int(received.unfinished))

    def _tokens(self, step: int) -> Tensor:
        assert self._received is not None
        return self._received.token_ids.clone()

    def _logprobs(self, step: int) -> Tensor | None:
        assert self._received is not None
        logprobs = self._received.logprobs
        return None if logprobs is None else logprobs.clone()

    def _reasons(self) -> list[str | None]:
        return ["eos" if finished else None for finished in self._rows.finished.tolist()]
