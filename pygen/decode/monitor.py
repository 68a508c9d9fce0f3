"""What the host does between the steps of a loop: stopping, streaming, progress, and errors of rows that went wrong."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from pygen.decode.progress import ProgressBar
from pygen.plan.report import StepReport
from pygen.request.protocols import Streamer


class HostMonitor:
    """What the monitors of all loops share: time limit, cancellation and progress.

    cancel: the caller sets it to end the call after the current step.
    """

    def __init__(
        self,
        *,
        max_time: float | None = None,
        cancel: threading.Event | None = None,
        progress: ProgressBar | None = None,
    ) -> None:
        self._deadline = None if max_time is None else time.monotonic() + max_time
        self._cancel = cancel
        self._progress = progress

    def is_late(self) -> bool:
        return self._deadline is not None and time.monotonic() > self._deadline

    def cancelled(self) -> bool:
        """Whether the caller gave up."""
        return self._cancel is not None and self._cancel.is_set()


class Monitor(HostMonitor):
    """Decides after every step, by its report alone, whether rows go on.

    rows, max_new_tokens: of the call.
    streamer: one with a method `put_step` gets the tokens of a step with their log-probabilities, or None, and why each
        row has ended, or None while it goes on; any other gets the tokens.
    """

    def __init__(
        self,
        rows: int,
        max_new_tokens: int,
        *,
        max_time: float | None = None,
        cancel: threading.Event | None = None,
        streamer: Streamer | None = None,
        progress: ProgressBar | None = None,
    ) -> None:
        super().__init__(max_time=max_time, cancel=cancel, progress=progress)
        self._rows = rows
        self._max_new_tokens = max_new_tokens
        self._streamer = streamer
        self._put_step: Callable[..., object] | None = getattr(streamer, "put_step", None)
        self._last: StepReport | None = None
        self._cut_short = False

    def cancelled(self) -> bool:
        """Whether the caller gave up; from then on the rows that still run end here."""
        if self._cancel is not None and self._cancel.is_set():
            self._cut_short = True
        return self._cut_short

    def look(self, step: int, report: StepReport) -> bool:
        """Whether `step` was the last. Raises for a row without a choice, and passes the tokens on."""
        invalid = report.invalid()
        if invalid is not None:
            raise RuntimeError(invalid.describe(step))
        self._last = report
        over = report.unfinished == 0
        if not over and self._deadline is not None:
            self._cut_short |= self.is_late()
        over = over or self.cancelled()
        if self._streamer is not None:
            self._send(self._streamer, step, report, over)
        if self._progress is not None:
            self._progress.update(1)
        # A streamer may have cancelled.
        return over or self.cancelled()

    def finish_reasons(self) -> list[str]:
        """Why every row ended: "eos", "stop" or "length"."""
        reasons: list[str | None] = [None] * self._rows if self._last is None else self._last.reasons()
        return [reason or ("stop" if self._cut_short else "length") for reason in reasons]

    def _send(self, streamer: Streamer, step: int, report: StepReport, over: bool) -> None:
        tokens = report.token_ids()
        if self._put_step is None:
            streamer.put(tokens)
            return
        over |= self._max_new_tokens == step + 1
        reasons = self.finish_reasons() if over else report.reasons()
        self._put_step(tokens, report.logprobs(), reasons)
