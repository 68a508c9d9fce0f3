"""The monitor of a beam search that launches ahead: it knows a step by its message alone."""

from __future__ import annotations

from pygen.decode.beam_monitor import BeamMonitor
from pygen.decode.monitor import describe_invalid
from pygen.graph.stop_poll import Received
from pygen.ops import RowStatus


class LateBeamMonitor(BeamMonitor):
    """A `BeamMonitor` that never asks about candidates, where later steps may have been taken already; see there."""

    @property
    def criteria(self) -> None:
        """Nothing can be asked about candidates."""

    @property
    def reads_search(self) -> bool:
        """Whether `look` reads the search, which then has to stand after the very step."""
        return self._stream is not None

    def gave_up(self) -> bool:
        """Whether time is up, or the caller has cancelled: every candidate of the next step ends."""
        return self._is_late() or self.cancelled()

    def look(self, step: int, received: Received) -> bool:
        """Whether `step`, whose message is `received`, was the last; raises for an invalid row, and passes on the
        tokens that are certain."""
        bad = (received.status != RowStatus.OK).nonzero()[:, 0].tolist()
        if bad and self._on_invalid == "raise":
            raise RuntimeError(describe_invalid(bad[0], step, None, int(received.status[bad[0]]), len(bad)))
        self._pass_on(step)
        return int(received.unfinished) == 0
