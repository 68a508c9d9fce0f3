"""`stream`: generation as an iterator over the tokens of all rows."""

from __future__ import annotations

import contextlib
import contextvars
import queue
import re
import threading
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pygen.generate import generate
from pygen.streamers import BaseStreamer

_BYTE_TOKEN = re.compile("<0x[0-9A-Fa-f]{2}>")
_INCOMPLETE = "�"  # what decoders show for bytes that are no character, or not yet
_WINDOW = 16  # tokens that are decoded again with the next one, at most, unless they are parts of one character


@dataclass(frozen=True)
class StreamEvent:
    """One token of one row.

    row: 0 to batch_size * num_return_sequences - 1, the copies of a prompt side by side.
    text: what the token adds to the row's text, often nothing while a character is incomplete; None without tokenizer.
    logprob: ln of its probability in the distribution it was drawn from; None without `output_logprobs`.
    finish_reason: "eos", "stop" or "length" with the last token of a row, else None.
    """

    row: int
    token_id: int
    text: str | None = None
    logprob: float | None = None
    finish_reason: str | None = None


def stream(
    model: Any,
    inputs: Tensor | None = None,
    generation_config: Any = None,
    *,
    tokenizer: Any = None,
    decode_kwargs: Mapping[str, Any] | None = None,
    cancel: threading.Event | None = None,
    **kwargs: Any,
) -> Generator[StreamEvent, None, Any]:
    """Generates in a thread of its own and yields every token: step by step, within a step row by row.

        for event in pygen.stream(model, **inputs, tokenizer=tokenizer, max_new_tokens=100):
            print(event.text, end="", flush=True)

    Arguments: those of `generate`, and
        tokenizer: turns tokens into text: anything with `decode(list[int], **decode_kwargs) -> str`. The texts of a
            row's events make up `decode(tokens of the row, **decode_kwargs)`, to the letter; clean-up of spaces, which
            takes back what was shown, is off.
        decode_kwargs: for example `{"skip_special_tokens": True}`.

    Generation starts with the first event that is asked for. It ends after the step in progress when the iterator is
    closed, as by `break` in a `for` loop; a consumer that is slow does not slow it down. A row that has ended yields
    nothing more. Errors of `generate` are raised here, behind the events of the steps before. The return value (of
    `yield from`, or `StopIteration.value`) is what `generate` returns.
    """
    wants_logprobs = kwargs.get("output_logprobs", getattr(generation_config, "output_logprobs", None))
    if wants_logprobs:
        kwargs.setdefault("return_dict_in_generate", True)
    steps: queue.SimpleQueue[_Step | _Ending] = queue.SimpleQueue()
    closing = _Closing(cancel)
    contexts = _contexts_of_this_thread()

    def run() -> None:
        call = {"inputs": inputs, "generation_config": generation_config, "tokenizer": tokenizer, "cancel": closing}
        try:
            with contextlib.ExitStack() as stack:
                for context in contexts:
                    stack.enter_context(context)
                output = generate(model, **call, streamer=_Steps(steps), **kwargs)
            steps.put(_Ending(output, None))
        except BaseException as error:
            steps.put(_Ending(None, error))

    thread = threading.Thread(target=contextvars.copy_context().run, args=(run,), name="pygen.stream")
    thread.start()
    texts: dict[int, _RowText] = {}
    ended: set[int] = set()
    try:
        while isinstance(step := steps.get(), _Step):
            for row, (token_id, logprob, reason) in enumerate(zip(*step, strict=True)):
                if row in ended:
                    continue
                text = None
                if tokenizer is not None:
                    if row not in texts:
                        texts[row] = _RowText(tokenizer, decode_kwargs)
                    text = texts[row].add(token_id) + (texts[row].finish() if reason is not None else "")
                if reason is not None:
                    ended.add(row)
                yield StreamEvent(row, token_id, text, logprob, reason)
        if step.error is not None:
            raise step.error
        return step.output
    finally:
        closing.set()
        thread.join()


class _Step(NamedTuple):
    """The tokens of one step, by row."""

    token_ids: list[int]
    logprobs: list[float | None]
    finish_reasons: list[str | None]


class _Ending(NamedTuple):
    output: Any
    error: BaseException | None


class _Steps(BaseStreamer):
    """Puts every step into a queue."""

    def __init__(self, steps: queue.SimpleQueue[_Step | _Ending]) -> None:
        self._steps = steps

    def put(self, value: Tensor) -> None:
        if value.ndim != 2:
            raise NotImplementedError("`stream` needs a loop that tells why rows end")

    def put_step(self, tokens: Tensor, logprobs: Tensor | None, finish_reasons: list[str | None]) -> None:
        values = [None] * len(tokens) if logprobs is None else logprobs.tolist()
        self._steps.put(_Step(tokens.tolist(), values, finish_reasons))

    def end(self) -> None:
        pass


class _Closing(threading.Event):
    """Set when the iterator is closed; counts as set when the caller's event is."""

    def __init__(self, other: threading.Event | None) -> None:
        super().__init__()
        self._other = other

    def is_set(self) -> bool:
        return super().is_set() or (self._other is not None and self._other.is_set())


def _contexts_of_this_thread() -> list[contextlib.AbstractContextManager[Any]]:
    """What torch keeps per thread and a forward depends on: automatic casts, and the stream with its device."""
    contexts: list[contextlib.AbstractContextManager[Any]] = [
        torch.autocast(device, dtype=torch.get_autocast_dtype(device))
        for device in ("cpu", "cuda")
        if torch.is_autocast_enabled(device)
    ]
    if torch.cuda.is_initialized():
        contexts.append(torch.cuda.stream(torch.cuda.current_stream()))
    return contexts


class _RowText:
    """Text of a row that grows by tokens, in pieces that are never taken back.

    Held back are bytes that are no character yet, and tokens of single bytes, of which some decoders show none if the
    last of them are no character.
    """

    def __init__(self, tokenizer: Any, decode_kwargs: Mapping[str, Any] | None) -> None:
        self._decode_kwargs = dict(decode_kwargs or {})
        if getattr(tokenizer, "clean_up_tokenization_spaces", False):
            self._decode_kwargs.setdefault("clean_up_tokenization_spaces", False)
        self._tokenizer = tokenizer
        self._name_of = getattr(tokenizer, "convert_ids_to_tokens", None) or getattr(tokenizer, "id_to_token", None)
        self._window: list[int] = []  # the last tokens, the first of which belong to text that was shown
        self._shown = 0  # characters of the window's text
        self._settled = 0  # tokens of the window after which all of the text was shown

    def add(self, token_id: int) -> str:
        """What can be shown now."""
        self._window.append(token_id)
        if self._is_byte(token_id):
            return ""
        text = self._decode(self._window)
        complete = len(text.rstrip(_INCOMPLETE))
        piece = text[self._shown : complete]
        self._shown = max(self._shown, complete)
        if complete == len(text):
            self._shorten()
        return piece

    def finish(self) -> str:
        """What was held back."""
        return self._decode(self._window)[self._shown :]

    def _shorten(self) -> None:
        """Forgets the tokens before the last settled one. A token has to stay: the first of a text loses its space."""
        if len(self._window) > _WINDOW:
            rest = self._window[self._settled :]
            if text := self._decode(rest):
                self._window, self._shown = rest, len(text)
        self._settled = len(self._window)

    def _decode(self, token_ids: list[int]) -> str:
        return str(self._tokenizer.decode(token_ids, **self._decode_kwargs))

    def _is_byte(self, token_id: int) -> bool:
        name = self._name_of(token_id) if self._name_of is not None else None
        return isinstance(name, str) and _BYTE_TOKEN.fullmatch(name) is not None
