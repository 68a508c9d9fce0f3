"""Streamers: objects that receive tokens while `generate` produces them."""

from __future__ import annotations

import asyncio
import contextlib
import queue

from torch import Tensor

from pygen.request.protocols import Streamer, TextDecoder
from pygen.streamers.row_text import row_text


class BaseStreamer:
    """Receives the prompts (rows, prompt_length), then the tokens (rows,) of every step, all int64 on the CPU.

    When generation fails, `generate` calls the method `fail(error)` instead of `end()`, where a streamer has one.
    """

    def put(self, value: Tensor) -> None:
        raise NotImplementedError

    def end(self) -> None:
        """`generate` calls this once, after the last token or after a failure."""
        raise NotImplementedError


def end_stream(streamer: Streamer | None, error: BaseException | None = None) -> None:
    """Reports to `streamer`, unless it is None, that generation is over or failed with `error`."""
    fail = getattr(streamer, "fail", None)
    if error is not None and fail is not None:
        fail(error)
    elif streamer is not None:
        streamer.end()


class TextStreamer(BaseStreamer):
    """Prints one row's text while it grows, without the end that the next token may still change.

    The pieces together are `tokenizer.decode(all ids, **decode_kwargs)`; `pygen.streamers.row_text` says which text
    waits for a later token. Override `on_finalized_text` to send the text elsewhere.

    tokenizer: anything with `decode(list[int], **decode_kwargs) -> str`.
    skip_prompt: leaves the prompt out.
    Errors: ValueError when `put` receives more than one row.
    """

    def __init__(self, tokenizer: TextDecoder, skip_prompt: bool = False, **decode_kwargs: object) -> None:
        self.tokenizer = tokenizer
        self.skip_prompt = skip_prompt
        self.decode_kwargs = decode_kwargs
        self._text = row_text(tokenizer, decode_kwargs)
        self.next_tokens_are_prompt = True

    def put(self, value: Tensor) -> None:
        if value.ndim > 1:
            if value.shape[0] > 1:
                raise ValueError(f"`TextStreamer` streams one row, got {value.shape[0]}")
            value = value[0]
        is_prompt, self.next_tokens_are_prompt = self.next_tokens_are_prompt, False
        if is_prompt and self.skip_prompt:
            return
        self.on_finalized_text(self._text.add(value.tolist()))

    def end(self) -> None:
        self.on_finalized_text(self._finish(), stream_end=True)

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Receives every piece of final text. `stream_end` marks the last piece."""
        print(text, flush=True, end="\n" if stream_end else "")

    def _finish(self) -> str:
        """Returns the text that waited, and resets the streamer for another call."""
        text, self._text = self._text, row_text(self.tokenizer, self.decode_kwargs)
        self.next_tokens_are_prompt = True
        return text.finish()


class TextIteratorStreamer(TextStreamer):
    """Iterates over the pieces of one row's text while another thread generates.

    The iterator ends with the text. If generation fails, it yields all earlier text and then raises the error.

    timeout: seconds to wait for a piece; then the iterator raises `queue.Empty`. None waits for ever.
    """

    def __init__(
        self, tokenizer: TextDecoder, skip_prompt: bool = False, timeout: float | None = None, **decode_kwargs: object
    ) -> None:
        super().__init__(tokenizer, skip_prompt, **decode_kwargs)
        self.text_queue: queue.Queue[object] = queue.Queue()
        self.stop_signal: object = None
        self.timeout = timeout

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self.text_queue.put(text, timeout=self.timeout)
        if stream_end:
            self.text_queue.put(self.stop_signal, timeout=self.timeout)

    def fail(self, error: BaseException) -> None:
        with contextlib.suppress(Exception):  # the tokenizer may have raised the error
            self.on_finalized_text(self._finish())
        self.text_queue.put(error, timeout=self.timeout)

    def __iter__(self) -> TextIteratorStreamer:
        return self

    def __next__(self) -> str:
        value = self.text_queue.get(timeout=self.timeout)
        if isinstance(value, BaseException):
            raise value
        if value == self.stop_signal:
            raise StopIteration
        return str(value)


class AsyncTextIteratorStreamer(TextStreamer):
    """`TextIteratorStreamer` as an asynchronous iterator. Construct it in a coroutine of the event loop that reads it.

    timeout: seconds to wait for a piece; then the iterator raises `TimeoutError`. None waits for ever.
    """

    def __init__(
        self, tokenizer: TextDecoder, skip_prompt: bool = False, timeout: float | None = None, **decode_kwargs: object
    ) -> None:
        super().__init__(tokenizer, skip_prompt, **decode_kwargs)
        self.text_queue: asyncio.Queue[object] = asyncio.Queue()
        self.stop_signal: object = None
        self.timeout = timeout
        self.loop = asyncio.get_running_loop()

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self._send(text)
        if stream_end:
            self._send(self.stop_signal)

    def fail(self, error: BaseException) -> None:
        with contextlib.suppress(Exception):  # the tokenizer may have raised the error
            self.on_finalized_text(self._finish())
        self._send(error)

    def __aiter__(self) -> AsyncTextIteratorStreamer:
        return self

    async def __anext__(self) -> str:
        try:
            value = await asyncio.wait_for(self.text_queue.get(), self.timeout)
        except asyncio.TimeoutError as error:  # before Python 3.11 this isn't the built-in class
            raise TimeoutError(f"no text within {self.timeout} s") from error
        if isinstance(value, BaseException):
            raise value
        if value == self.stop_signal:
            raise StopAsyncIteration
        return str(value)

    def _send(self, value: object) -> None:
        self.loop.call_soon_threadsafe(self.text_queue.put_nowait, value)
