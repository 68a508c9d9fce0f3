"""The steps of a batch whose rows come and go: read new prompts, run the model once, choose, end rows."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable
from typing import Protocol

from torch import Tensor, nn

from pygen.backends import BackendError
from pygen.batch.chosen import Chosen
from pygen.batch.forward import BatchForward
from pygen.batch.prefix_store import PrefixStore
from pygen.batch.reading import Reading
from pygen.batch.request import Request
from pygen.batch.results import BatchResult, BatchTimes
from pygen.batch.row import Row
from pygen.batch.shared_choice import SharedChoice
from pygen.batch.window_cache import WindowCache
from pygen.ops import SampleOutput, TokenLogprobs


class Rows(Protocol):
    """Where the rows of a batch are, and how a forward reads them.

    looks_late: the host looks at a step's tokens while the next forward runs. A row that has ended runs one forward in
        vain then, but the device never waits.
    """

    looks_late: bool

    @property
    def present(self) -> list[Row]: ...

    def add(self, row: Row, source: WindowCache) -> None:
        """Adds a row with its first token. `source` holds its prompt, in one row."""
        ...

    def forward(self) -> tuple[list[Row], Tensor]:
        """Reads the newest token of every row; returns the rows and their logits (rows, vocab_size)."""
        ...

    def feed(self, rows: list[Row], token_ids: Tensor) -> None:
        """Gives the next forward the newest tokens, (rows,) int64, without waiting for the device."""
        ...

    def remove(self, row: Row) -> None: ...

    def take_all(self) -> list[Row]:
        """Removes all rows, after a forward that may have failed."""
        ...


class Batch:
    """Up to `num_rows` texts of one model at once; a row that ends makes room for the next prompt at once.

        while batch.is_busy:
            batch.step()

    Every row's tokens are those of `generate` for its prompt alone, since nothing of a row depends on the others but
    the rounding of the model's matrix products.

    runtime: see `generate_batch`.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        rows: int,
        prefill_chunk_size: int | None = None,
        prefix_positions: int = 0,
        runtime: str = "eager",
    ) -> None:
        self._forward = BatchForward(model)
        self.num_rows = rows
        self._piece = prefill_chunk_size
        self._prefixes = PrefixStore(prefix_positions)
        self._waiting: deque[Request] = deque()
        self._reading: Reading | None = None
        self._rows = rows_for(self._forward, rows, runtime)
        self._choice: SharedChoice | None = None
        self._unseen: list[Chosen] = []
        self.stats = BatchStats()

    @property
    def is_busy(self) -> bool:
        return bool(self._rows.present or self._waiting or self._reading is not None)

    @property
    def wants_more(self) -> bool:
        """Whether a row is free for which no prompt waits."""
        return len(self._rows.present) + len(self._waiting) + (self._reading is not None) < self.num_rows

    @property
    def longest(self) -> int | None:
        """See `Request.check_below`."""
        return self._forward.longest

    def add(self, request: Request) -> None:
        """Queues a prompt."""
        self._waiting.append(request)

    def step(self) -> None:
        """Starts rows for waiting prompts where there is room, and generates one token for every row.

        With `prefill_chunk_size` it reads one piece of a prompt at most, so that rows never wait for longer.
        """
        self._drop_cancelled()
        if not self._rows.looks_late:
            self._start_rows()
        rows: list[Row] = []
        if self._rows.present:
            rows, logits = self._rows.forward()
            self.stats.steps += 1
            self.stats.row_steps += len(rows)
        self._look()
        if self._rows.looks_late:
            self._start_rows()
        if rows:
            self._choose(rows, logits)
        if not self._rows.looks_late:
            self._look()

    def cancel(self) -> None:
        """Ends all prompts with what they have."""
        self._end_all("cancelled", None)

    def fail(self, error: Exception) -> None:
        """Ends all prompts with `error`."""
        self._end_all("error", error)

    def _start_rows(self) -> None:
        may_read = True
        while len(self._rows.present) < self.num_rows and may_read:
            if self._reading is None:
                if not self._waiting:
                    return
                self._begin_reading(self._waiting.popleft())
            if self._reading is not None and self._reading.logits is None:
                may_read = self._piece is None
                self._read(self._reading)
            if self._reading is not None and self._reading.logits is not None:
                self._start_row(self._reading)

    def _begin_reading(self, request: Request) -> None:
        try:
            self._reading = Reading(request, self._forward, self._prefixes)
        except Exception as error:
            _put_unstarted([request], "error", error)
        else:
            self.stats.shared_positions += self._reading.shared

    def _read(self, reading: Reading) -> None:
        try:
            self.stats.prompt_positions += reading.read(self._piece)
        except Exception as error:
            self._reading = None
            _put_unstarted([reading.request], "error", error)

    def _start_row(self, reading: Reading) -> None:
        """Gives the next returned sequence of a prompt a row, and chooses its first token."""
        row, logits = Row(reading.request, reading.started), reading.logits
        assert logits is not None
        reading.started += 1
        if reading.started == reading.request.num_copies:
            self._reading = None
        try:
            self._take(Chosen([row], *row.choose(logits), logits))
        except Exception as error:
            row.end, row.error = "error", error
        if row.end is not None:
            row.request.sink.put_end(row.result())
            return
        self._rows.add(row, reading.cache)

    def _choose(self, rows: list[Row], logits: Tensor) -> None:
        """Chooses the next token of the rows that have not ended."""
        running = [number for number, row in enumerate(rows) if row.end is None]
        shared = [number for number in running if not rows[number].is_alone]
        if shared:
            own = [rows[number] for number in shared]
            scores = logits if len(own) == len(rows) else logits[shared]
            if self._choice is None or not self._choice.fits(own):
                self._choice = SharedChoice(own, scores)
            self._put(own, *self._choice(scores), scores)
        for number in running:
            if rows[number].is_alone:
                scores = logits[number : number + 1]
                try:
                    self._put([rows[number]], *rows[number].choose(scores), scores)
                except Exception as error:
                    rows[number].end, rows[number].error = "error", error

    def _put(self, rows: list[Row], output: SampleOutput, raw: TokenLogprobs | None, logits: Tensor) -> None:
        self._rows.feed(rows, output.token_ids)
        # The next forward overwrites the logits before a late look.
        self._unseen.append(Chosen(rows, output, raw, None if self._rows.looks_late else logits))

    def _look(self) -> None:
        """Hands the tokens chosen last to their rows, and lets go of rows that have ended."""
        unseen, self._unseen = self._unseen, []
        for chosen in unseen:
            self._take(chosen)
        for row in self._rows.present:
            if row.end is not None:
                self._rows.remove(row)
                row.request.sink.put_end(row.result())

    def _take(self, chosen: Chosen) -> None:
        chosen.look()
        self.stats.tokens += sum(row.error is None for row in chosen.rows)

    def _drop_cancelled(self) -> None:
        for row in self._rows.present:
            if row.request.sink.cancelled():
                self._rows.remove(row)
                row.end = "cancelled"
                row.request.sink.put_end(row.result())
        if self._reading is not None and self._reading.request.sink.cancelled():
            reading, self._reading = self._reading, None
            _put_unstarted([reading.request], "cancelled", None, first=reading.started)
        gone = [request for request in self._waiting if request.sink.cancelled()]
        if gone:
            self._waiting = deque(request for request in self._waiting if request not in gone)
            _put_unstarted(gone, "cancelled", None)

    def _end_all(self, reason: str, error: Exception | None) -> None:
        rows, reading, waiting = self._rows.take_all(), self._reading, self._waiting
        self._reading, self._waiting, self._unseen = None, deque(), []
        for row in rows:
            row.end, row.error = reason, error
            row.request.sink.put_end(row.result())
        if reading is not None:
            _put_unstarted([reading.request], reason, error, first=reading.started)
        _put_unstarted(waiting, reason, error)


def rows_for(forward: BatchForward, num_rows: int, runtime: str) -> Rows:
    """The rows for a runtime. Raises BackendError where it is "graph" and there is a reason against it."""
    from pygen.batch.window_rows import WindowRows

    reason = "`runtime`='eager'" if runtime == "eager" else forward.reason_against_capture()
    if reason is None:
        from pygen.batch.captured_rows import CapturedRows

        return CapturedRows(forward, num_rows, must_capture=runtime == "graph")
    if runtime == "graph":
        raise BackendError(f"`runtime`='graph' cannot run here: {reason}")
    return WindowRows(forward, num_rows)


class BatchStats:
    """What a batch has done: steps, row-steps, tokens, and positions of prompts that were read or shared."""

    def __init__(self) -> None:
        self.steps = self.row_steps = self.tokens = self.prompt_positions = self.shared_positions = 0


def _put_unstarted(requests: Iterable[Request], reason: str, error: Exception | None, *, first: int = 0) -> None:
    """Ends every sequence from number `first` on that never had a row."""
    for request in requests:
        for copy in range(first, request.num_copies):
            times = BatchTimes(request.queued, None, time.monotonic())
            request.sink.put_end(
                BatchResult(request.index, copy, request.prompt_ids, [], reason, times, seed=request.seed, error=error)
            )
