"""The steps of a batch whose rows come and go: read new prompts, run the model once, choose, end rows."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable
from typing import NamedTuple, Protocol

from torch import Tensor, nn

from pygen.backends import BackendError
from pygen.batch.chosen import Chosen
from pygen.batch.forward import BatchForward
from pygen.batch.prefix_store import PrefixStore
from pygen.batch.reading import Reading, next_group
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

    def add(self, row: Row, source: WindowCache, source_row: int) -> None:
        """Adds a row with its first token. A row of `source` holds its prompt."""
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


class Unstarted(NamedTuple):
    """A returned sequence whose prompt was read, and is row `row` of `reading`."""

    request: Request
    copy: int
    reading: Reading
    row: int


class Batch:
    """Up to `num_rows` texts of one model at once; a row that ends makes room for the next prompt at once.

        while batch.is_busy:
            batch.step()

    Every row's tokens are those of `generate` for its prompt alone, since nothing of a row depends on the others but
    the rounding of the model's matrix products.

    max_length, runtime: see `generate_batch`.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        rows: int,
        prefill_chunk_size: int | None = None,
        prefix_positions: int = 0,
        max_length: int | None = None,
        runtime: str = "eager",
    ) -> None:
        self._forward = BatchForward(model)
        self.num_rows = rows
        self._piece = prefill_chunk_size
        self._prefixes = PrefixStore(prefix_positions)
        self._waiting: deque[Request] = deque()
        self._reading: Reading | None = None
        self._unstarted: deque[Unstarted] = deque()
        # Prompts to read one by one, because they failed together.
        self._alone = 0
        self._rows = rows_for(self._forward, rows, max_length, runtime)
        self._choice: SharedChoice | None = None
        self._unseen: list[Chosen] = []
        self.stats = BatchStats()

    @property
    def is_busy(self) -> bool:
        return bool(self._rows.present or self._waiting or self._unstarted or self._reading is not None)

    @property
    def wants_more(self) -> bool:
        """Whether a row is free for which no prompt waits."""
        reading = 0 if self._reading is None else len(self._reading.requests)
        return len(self._rows.present) + len(self._waiting) + len(self._unstarted) + reading < self.num_rows

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
        while (free := self.num_rows - len(self._rows.present)) > 0:
            if self._unstarted:
                self._start_row(self._unstarted.popleft())
            elif may_read and (self._reading is not None or self._waiting):
                may_read = self._piece is None
                self._read(free)
            else:
                return

    def _read(self, free: int) -> None:
        """Reads a piece of the prompts that are being read, or of the next ones."""
        if self._reading is None:
            group = next_group(self._waiting, self._prefixes, 1 if self._alone > 0 else free)
            self._alone -= self._alone > 0
            for request in group:
                self._waiting.remove(request)
        else:
            group = self._reading.requests
        try:
            if self._reading is None:
                self._reading = Reading(group, self._forward, self._prefixes)
                self.stats.shared_positions += self._reading.shared
            self.stats.prompt_positions += self._reading.read(self._piece)
        except Exception as error:
            self._reading = None
            if len(group) == 1:
                _put_unstarted(_sequences(group), "error", error)
            else:
                # One of them may be at fault, so each is read by itself.
                self._waiting.extendleft(reversed(group))
                self._alone = len(group)
            return
        if self._reading.logits is not None:
            reading, self._reading = self._reading, None
            for number, request in enumerate(reading.requests):
                self._unstarted += [Unstarted(request, copy, reading, number) for copy in range(request.num_copies)]

    def _start_row(self, unstarted: Unstarted) -> None:
        """Gives a sequence whose prompt was read a row, and chooses its first token."""
        request, copy, reading, number = unstarted
        row = Row(request, copy)
        assert reading.logits is not None
        logits = reading.logits[number : number + 1]
        try:
            self._take(Chosen([row], *row.choose(logits), logits))
        except Exception as error:
            row.end, row.error = "error", error
        if row.end is not None:
            row.request.sink.put_end(row.result())
            return
        self._rows.add(row, reading.cache, number)

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
        gone = _sequences(request for request in self._waiting if request.sink.cancelled())
        gone += [(each.request, each.copy) for each in self._unstarted if each.request.sink.cancelled()]
        if self._reading is not None and all(request.sink.cancelled() for request in self._reading.requests):
            gone += _sequences(self._reading.requests)
            self._reading = None
        self._waiting = deque(request for request in self._waiting if not request.sink.cancelled())
        self._unstarted = deque(each for each in self._unstarted if not each.request.sink.cancelled())
        _put_unstarted(gone, "cancelled", None)

    def _end_all(self, reason: str, error: Exception | None) -> None:
        rows = self._rows.present
        unstarted = [(each.request, each.copy) for each in self._unstarted]
        unstarted += _sequences([*(self._reading.requests if self._reading is not None else []), *self._waiting])
        self._reading, self._waiting, self._unstarted, self._unseen = None, deque(), deque(), []
        try:
            self._rows.take_all()
        finally:
            for row in rows:
                row.end, row.error = reason, error
                row.request.sink.put_end(row.result())
            _put_unstarted(unstarted, reason, error)


def rows_for(forward: BatchForward, num_rows: int, max_length: int | None, runtime: str) -> Rows:
    """The rows for a runtime. Raises BackendError where it is "graph" and there is a reason against it."""
    from pygen.batch.window_rows import WindowRows

    reason = "`runtime`='eager'" if runtime == "eager" else forward.reason_against_capture()
    if reason is None:
        from pygen.batch.captured_rows import CapturedRows

        return CapturedRows(forward, num_rows, max_length=max_length, must_capture=runtime == "graph")
    if runtime == "graph":
        raise BackendError(f"`runtime`='graph' cannot run here: {reason}")
    return WindowRows(forward, num_rows)


class BatchStats:
    """What a batch has done: steps, row-steps, tokens, and positions of prompts that were read or shared."""

    def __init__(self) -> None:
        self.steps = self.row_steps = self.tokens = self.prompt_positions = self.shared_positions = 0


def _sequences(requests: Iterable[Request]) -> list[tuple[Request, int]]:
    return [(request, copy) for request in requests for copy in range(request.num_copies)]


def _put_unstarted(sequences: Iterable[tuple[Request, int]], reason: str, error: Exception | None) -> None:
    """Ends sequences of prompts, each with its number, that never had a row."""
    for request, copy in sequences:
        times = BatchTimes(request.queued, None, time.monotonic())
        request.sink.put_end(
            BatchResult(request.index, copy, request.prompt_ids, [], reason, times, seed=request.seed, error=error)
        )
