"""What the host does between the steps of a beam search: stopping, streaming, progress, and errors of invalid rows."""

from __future__ import annotations

import threading
from collections.abc import Callable

from torch import Tensor

from pygen.decode.monitor import HostMonitor
from pygen.decode.progress import ProgressBar
from pygen.plan.report import BeamReport
from pygen.request.protocols import Streamer


class BeamMonitor(HostMonitor):
    """Decides after every step, by its report alone, whether the search goes on."""

    def __init__(
        self,
        *,
        max_time: float | None = None,
        cancel: threading.Event | None = None,
        streamer: Streamer | None = None,
        progress: ProgressBar | None = None,
    ) -> None:
        super().__init__(max_time=max_time, cancel=cancel, progress=progress)
        self._streamer = streamer
        self._put_step: Callable[..., object] | None = getattr(streamer, "put_step", None)
        self._sent = 0

    @property
    def may_give_up(self) -> bool:
        return self._deadline is not None or self._cancel is not None

    def gave_up(self) -> bool:
        """Whether time is up, or the caller has cancelled: every candidate of the next step ends."""
        return self.is_late() or self.cancelled()

    def look(self, step: int, report: BeamReport) -> bool:
        """Whether `step` was the last. Raises for a row without a choice, and passes on the tokens that are certain."""
        invalid = report.invalid()
        if invalid is not None:
            raise RuntimeError(invalid.describe(step))
        if self._streamer is not None:
            tokens, logprobs = report.certain(self._sent, with_reason=self._put_step is not None)
            self._send(self._streamer, tokens, logprobs=logprobs)
        if self._progress is not None:
            self._progress.update(1)
        return report.unfinished == 0

    def finish(self, best: Tensor, finish_reason: str, logprobs: Tensor | None) -> None:
        """Streams the tokens of the best hypothesis that were not streamed yet.

        best: (length,) without its prompt. logprobs: (length,) of its tokens, or None.
        """
        if self._streamer is not None:
            self._send(
                self._streamer, best.cpu(), finish_reason, None if logprobs is None else logprobs[self._sent :].cpu()
            )

    def _send(
        self, streamer: Streamer, tokens: Tensor, finish_reason: str | None = None, logprobs: Tensor | None = None
    ) -> None:
        """Sends the tokens after the first `_sent`. logprobs: of these."""
        fresh = tokens[self._sent :].clone()
        if len(fresh) == 0:
            return
        self._sent = len(tokens)
        if self._put_step is None:
            streamer.put(fresh)
            return
        values = [None] * len(fresh) if logprobs is None else logprobs.split(1)
        for index, (token, value) in enumerate(zip(fresh.split(1), values, strict=True), start=1):
            self._put_step(token, value, [finish_reason if index == len(fresh) else None])
