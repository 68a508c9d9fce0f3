"""What `Engine.submit` returns: the tokens of one prompt as they come, and its results."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from typing import Any

from pygen.batch.results import BatchResult
from pygen.request.protocols import TextDecoder
from pygen.streamers.row_text import CleanedRowText, RowText, row_text
from pygen.streaming import StreamEvent


class BatchHandle:
    """One prompt that an `Engine` has taken over. Every method may be called from any thread.

        for event in handle: ...           the tokens as they come, also `async for`; each is seen once
        handle.result()                    waits for the end, also `await handle`
        handle.cancel()

    An event's `row` is the number of the returned sequence. Iteration raises the error of a prompt that failed, after
    its tokens.
    """

    def __init__(self, index: int, num_copies: int, tokenizer: TextDecoder | None) -> None:
        self.index = index
        self._num_copies, self._tokenizer = num_copies, tokenizer
        self._events: deque[StreamEvent] = deque()
        self._texts: dict[int, RowText | CleanedRowText] = {}
        self._results: list[BatchResult] = []
        self._changed = threading.Condition()
        self._wakers: list[Callable[[], object]] = []
        self._is_cancelled = False

    @property
    def is_done(self) -> bool:
        return len(self._results) == self._num_copies

    def cancel(self) -> None:
        """Ends the prompt's rows after the present step; the results keep their tokens."""
        self._is_cancelled = True

    def results(self, timeout: float | None = None) -> list[BatchResult]:
        """The results of all `num_return_sequences`, in order.

        timeout: seconds to wait; TimeoutError after that.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self.is_done, timeout):
                raise TimeoutError(f"prompt {self.index} has not ended within {timeout} s")
        return sorted(self._results, key=lambda result: result.copy)

    def result(self, timeout: float | None = None) -> BatchResult:
        """The first of `results(timeout)`. It holds an error, and does not raise it."""
        return self.results(timeout)[0]

    def __iter__(self) -> Iterator[StreamEvent]:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._events or self.is_done)
                event = self._pop()
            if event is None:
                return
            yield event

    async def __aiter__(self) -> AsyncIterator[StreamEvent]:
        while True:
            await self._until(lambda: self._events or self.is_done)
            with self._changed:
                event = self._pop()
            if event is None:
                return
            yield event

    def __await__(self) -> Generator[Any, None, BatchResult]:
        yield from self._until(lambda: self.is_done).__await__()
        return self.result()

    def _pop(self) -> StreamEvent | None:
        """The next event; None after the last. Raises the error of the prompt in its place."""
        if self._events:
            return self._events.popleft()
        error = next((result.error for result in self._results if result.error is not None), None)
        if error is not None:
            raise error
        return None

    async def _until(self, condition: Callable[[], object]) -> None:
        loop = asyncio.get_running_loop()
        while True:
            changed = asyncio.Event()

            def wake(changed: asyncio.Event = changed) -> None:
                loop.call_soon_threadsafe(changed.set)

            with self._changed:
                if condition():
                    return
                self._wakers.append(wake)
            try:
                await changed.wait()
            finally:
                with self._changed:
                    if wake in self._wakers:
                        self._wakers.remove(wake)

    def put_token(self, copy: int, token_id: int, logprob: float | None, finish_reason: str | None) -> None:
        """Called by the engine's thread."""
        text = None
        if self._tokenizer is not None:
            if copy not in self._texts:
                clean = getattr(self._tokenizer, "clean_up_tokenization_spaces", False)
                options: dict[str, Any] = {"skip_special_tokens": True}
                self._texts[copy] = row_text(
                    self._tokenizer, options | ({"clean_up_tokenization_spaces": False} if clean else {})
                )
            row = self._texts[copy]
            text = row.add([token_id]) + (row.finish() if finish_reason is not None else "")
        self._put(lambda: self._events.append(StreamEvent(copy, token_id, text, logprob, finish_reason)))

    def put_end(self, result: BatchResult) -> None:
        """Called by the engine's thread."""
        self._put(lambda: self._results.append(result))

    def cancelled(self) -> bool:
        return self._is_cancelled

    def _put(self, change: Callable[[], object]) -> None:
        with self._changed:
            change()
            self._changed.notify_all()
            wakers, self._wakers = self._wakers, []
        for wake in wakers:
            # The waiter's event loop may have been closed.
            try:
                wake()
            except RuntimeError:
                continue
