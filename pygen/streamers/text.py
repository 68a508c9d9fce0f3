"""Streamers: objects that receive tokens while they are generated."""

from __future__ import annotations

import asyncio
import contextlib
import queue
from typing import Any

from torch import Tensor

from pygen.streamers.row_text import row_text


class BaseStreamer:
    """Receives the prompts (rows, prompt_length), then the tokens (rows,) of every step, all int64 on the CPU.

    One that has a method `fail(error)` gets it instead of `end()` when generation fails.
    """

    def put(self, value: Tensor) -> None:
        raise NotImplementedError

    def end(self) -> None:
        """Called once, after the last token or when generation failed."""
        raise NotImplementedError


def end_stream(streamer: Any, error: BaseException | None = None) -> None:
    """Tells `streamer`, if there is one, that generation is over or failed with `error`."""
    if error is not None and hasattr(streamer, "fail"):
        streamer.fail(error)
    elif streamer is not None:
        streamer.end()


class TextStreamer(BaseStreamer):
    """Prints one row's text while it grows, holding back what the next token may still change.

    The pieces make up `tokenizer.decode(all ids, **decode_kwargs)`; most tokens' text is final at once (see
    `pygen.streamers.row_text`). Override `on_finalized_text` to send the text elsewhere.

    tokenizer: anything with `decode(list[int], **decode_kwargs) -> str`.
    skip_prompt: do not show the prompt.
    Errors: ValueError when more than one row arrives.
    """

    def __init__(self, tokenizer: Any, skip_prompt: bool = False, **decode_kwargs: Any) -> None:
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
        """Receives every piece of final text; `stream_end` marks the last one."""
        print(text, flush=True, end="\n" if stream_end else "")

    def _finish(self) -> str:
        """What was held back; the streamer can be used again."""
        text, self._text = self._text, row_text(self.tokenizer, self.decode_kwargs)
        self.next_tokens_are_prompt = True
        return text.finish()


class TextIteratorStreamer(TextStreamer):
    """An iterator over the pieces of one row's text, to be read while another thread generates.

    It ends with the text, or raises the error of the generation behind everything that was generated before.

    timeout: seconds to wait for a piece before `queue.Empty` is raised; None waits for ever.
    """

    def __init__(
        self, tokenizer: Any, skip_prompt: bool = False, timeout: float | None = None, **decode_kwargs: Any
    ) -> None:
        super().__init__(tokenizer, skip_prompt, **decode_kwargs)
        self.text_queue: queue.Queue[Any] = queue.Queue()
        self.stop_signal: Any = None
        self.timeout = timeout

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self.text_queue.put(text, timeout=self.timeout)
        if stream_end:
            self.text_queue.put(self.stop_signal, timeout=self.timeout)

    def fail(self, error: BaseException) -> None:
        with contextlib.suppress(Exception):  # the error may be the tokenizer's
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
    """The same as an asynchronous iterator, made inside a coroutine of the event loop that reads it.

    timeout: seconds to wait for a piece before `TimeoutError` is raised; None waits for ever.
    """

    def __init__(
        self, tokenizer: Any, skip_prompt: bool = False, timeout: float | None = None, **decode_kwargs: Any
    ) -> None:
        super().__init__(tokenizer, skip_prompt, **decode_kwargs)
        self.text_queue: asyncio.Queue[Any] = asyncio.Queue()
        self.stop_signal: Any = None
        self.timeout = timeout
        self.loop = asyncio.get_running_loop()

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self._send(text)
        if stream_end:
            self._send(self.stop_signal)

    def fail(self, error: BaseException) -> None:
        with contextlib.suppress(Exception):  # the error may be the tokenizer's
            self.on_finalized_text(self._finish())
        self._send(error)

    def __aiter__(self) -> AsyncTextIteratorStreamer:
        return self

    async def __anext__(self) -> str:
        try:
            value = await asyncio.wait_for(self.text_queue.get(), self.timeout)
        except asyncio.TimeoutError as error:  # another class than the built-in one before Python 3.11
            raise TimeoutError(f"no text within {self.timeout} s") from error
        if isinstance(value, BaseException):
            raise value
        if value == self.stop_signal:
            raise StopAsyncIteration
        return str(value)

    def _send(self, value: Any) -> None:
        self.loop.call_soon_threadsafe(self.text_queue.put_nowait, value)
