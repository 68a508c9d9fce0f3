"""The steps of a batch whose rows come and go: read new prompts, run the model once, choose, end rows."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from pygen.batch.forward import BatchForward
from pygen.batch.prefix_store import PrefixStore
from pygen.batch.reading import Reading
from pygen.batch.request import Request
from pygen.batch.results import BatchResult, BatchTimes
from pygen.batch.row import Row
from pygen.batch.shared_choice import SharedChoice
from pygen.batch.window_cache import WindowCache
from pygen.ops import SampleOutput

_FIRST_CAPACITY = 256


class Batch:
    """Up to `rows` texts of one model at once; a row that ends makes room for the next prompt at once.

        while batch.is_busy:
            batch.step()

    Every row's tokens are those of `generate` for its prompt alone, since nothing of a row depends on the others but
    the rounding of the model's matrix products.

    stats: see `BatchStats`.
    """

    def __init__(self, model: nn.Module, *, rows: int, prefill_chunk_size: int | None, prefix_positions: int) -> None:
        self._forward = BatchForward(model)
        self.num_rows = rows
        self._piece = prefill_chunk_size
        self._prefixes = PrefixStore(prefix_positions)
        self._waiting: deque[Request] = deque()
        self._reading: Reading | None = None
        self._rows: list[Row] = []
        self._cache = WindowCache(self._forward.kinds, rows=rows, capacity=_FIRST_CAPACITY)
        self._choice: SharedChoice | None = None
        self.stats = BatchStats()

    @property
    def is_busy(self) -> bool:
        return bool(self._rows or self._waiting or self._reading is not None)

    @property
    def wants_more(self) -> bool:
        """Whether a row is free for which no prompt waits."""
        return len(self._rows) + len(self._waiting) + (self._reading is not None) < self.num_rows

    @property
    def longest(self) -> int | None:
        """See `Request.check_below`."""
        return self._forward.longest

    def add(self, request: Request) -> None:
        """Queues a prompt."""
        self._waiting.append(request)

    def step(self) -> None:
        """Starts rows for waiting prompts where there is room, then generates one token for every row.

        With `prefill_chunk_size` it reads one piece of a prompt at most, so that rows never wait for longer.
        """
        self._drop_cancelled()
        self._start_rows()
        if self._rows:
            self._advance()

    def cancel(self) -> None:
        """Ends all prompts with what they have."""
        self._end_rows("cancelled", None)

    def fail(self, error: Exception) -> None:
        """Ends all prompts with `error`."""
        self._end_rows("error", error)

    def _start_rows(self) -> None:
        may_read = True
        while len(self._rows) < self.num_rows and may_read:
            if self._reading is None:
                if not self._waiting:
                    return
                self._reading = self._begun(self._waiting.popleft())
            if self._reading is not None and self._reading.logits is None:
                may_read = self._piece is None
                self._read(self._reading)
            if self._reading is not None and self._reading.logits is not None:
                self._start_row(self._reading)

    def _begun(self, request: Request) -> Reading | None:
        try:
            return Reading(request, self._forward, self._prefixes)
        except Exception as error:
            _put_unstarted([request], "error", error)
            return None

    def _read(self, reading: Reading) -> None:
        self.stats.shared_positions += reading.shared if reading.cache.end == reading.shared else 0
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
            output = row.choose(logits)
            row.take(output, 0, int(output.token_ids[0]), logits)
        except Exception as error:
            row.end, row.error = "error", error
        self.stats.tokens += row.step
        if row.end is not None:
            row.request.sink.put_end(row.result())
            return
        self._rows.append(row)
        self._fit()
        self._cache.put_row(len(self._rows) - 1, reading.cache, row.length)

    def _advance(self) -> None:
        """Generates one token for every row."""
        self._fit()
        token_ids = torch.tensor([[row.last_token] for row in self._rows], device=self._forward.device)
        logits = self._forward.read(self._cache, token_ids, [row.length for row in self._rows])
        for row in self._rows:
            row.length += 1
        self.stats.steps += 1
        self.stats.row_steps += len(self._rows)
        self._choose(logits)
        for number in reversed(range(len(self._rows))):
            if self._rows[number].end is not None:
                self._end_row(number)

    def _choose(self, logits: Tensor) -> None:
        shared = [number for number, row in enumerate(self._rows) if not row.is_alone]
        if shared:
            rows = [self._rows[number] for number in shared]
            if self._choice is None or not self._choice.fits(rows):
                self._choice = SharedChoice(rows, logits.device)
            scores = logits if len(rows) == len(self._rows) else logits[shared]
            self._take(rows, self._choice(scores), scores)
        for number, row in enumerate(self._rows):
            if row.is_alone:
                scores = logits[number : number + 1]
                try:
                    self._take([row], row.choose(scores), scores)
                except Exception as error:
                    row.end, row.error = "error", error

    def _take(self, rows: list[Row], output: SampleOutput, logits: Tensor) -> None:
        for number, (row, token_id) in enumerate(zip(rows, output.token_ids.tolist(), strict=True)):
            row.take(output, number, token_id, logits)
            self.stats.tokens += row.error is None

    def _end_row(self, number: int) -> None:
        """Reports the row, and moves the last row into its place."""
        row, last = self._rows[number], len(self._rows) - 1
        if row.error is not None:
            # What made its scores invalid may be in its keys.
            self._cache.clear_row(number)
        if number < last:
            self._cache.move_row(last, number)
            if self._rows[number].error is not None:
                self._cache.clear_row(last)
            self._rows[number] = self._rows[last]
        self._rows.pop()
        row.request.sink.put_end(row.result())

    def _fit(self) -> None:
        self._cache.fit(max(row.length for row in self._rows), more=1)

    def _drop_cancelled(self) -> None:
        for number in reversed(range(len(self._rows))):
            if self._rows[number].request.sink.cancelled():
                self._rows[number].end = "cancelled"
                self._end_row(number)
        if self._reading is not None and self._reading.request.sink.cancelled():
            reading, self._reading = self._reading, None
            _put_unstarted([reading.request], "cancelled", None, first=reading.started)
        gone = [request for request in self._waiting if request.sink.cancelled()]
        if gone:
            self._waiting = deque(request for request in self._waiting if request not in gone)
            _put_unstarted(gone, "cancelled", None)

    def _end_rows(self, reason: str, error: Exception | None) -> None:
        rows, reading, waiting = self._rows, self._reading, self._waiting
        self._rows, self._reading, self._waiting = [], None, deque()
        for row in rows:
            row.end, row.error = reason, error
            row.request.sink.put_end(row.result())
        if reading is not None:
            _put_unstarted([reading.request], reason, error, first=reading.started)
        _put_unstarted(waiting, reason, error)


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
