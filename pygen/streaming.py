"""`stream`: generation as an iterator over the tokens of all rows."""

from __future__ import annotations

import contextlib
import contextvars
import queue
import threading
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor, nn

from pygen.call.threads import contexts_of_this_thread
from pygen.generate import generate
from pygen.outputs import GenerateOutput
from pygen.request.protocols import GenerationSettings, TextDecoder
from pygen.streamers.row_text import CleanedRowText, RowText, row_text
from pygen.streamers.text import BaseStreamer


@dataclass(frozen=True)
class StreamEvent:
    """One token of one row.

    row: 0 to batch_size * num_return_sequences - 1, the copies of a prompt side by side.
    text: what the token adds to the row's text, often nothing while a character is incomplete; None without tokenizer.
    logprob: ln of its probability as `output_logprobs` asks for it; None without.
    finish_reason: "eos", "stop" or "length" with the last token of a row, else None.
    """

    row: int
    token_id: int
    text: str | None = None
    logprob: float | None = None
    finish_reason: str | None = None


def stream(
    model: nn.Module,
    inputs: Tensor | None = None,
    generation_config: GenerationSettings | None = None,
    *,
    tokenizer: TextDecoder | None = None,
    decode_kwargs: Mapping[str, Any] | None = None,
    cancel: threading.Event | None = None,
    **kwargs: Any,
) -> Generator[StreamEvent, None, Tensor | GenerateOutput | None]:
    """Generates in another thread and yields every token: step by step, and within a step row by row.

        for event in pygen.stream(model, **inputs, tokenizer=tokenizer, max_new_tokens=100):
            print(event.text, end="", flush=True)

    Arguments: those of `generate`, and
        tokenizer: any object with `decode(list[int], **decode_kwargs) -> str`. The texts of a row's events joined
            are exactly `decode(tokens of the row, **decode_kwargs)`. Clean-up of spaces is off, because it would
            change text already shown.
        decode_kwargs: for example `{"skip_special_tokens": True}`.

    Generation starts when the first event is requested. Closing the iterator, as `break` does in a `for` loop, ends
    generation after the current step; a slow consumer does not delay it. A finished row yields no more events. Errors
    of `generate` are raised here, after the events of earlier steps. The return value (of `yield from`, or
    `StopIteration.value`) is that of `generate`.
    """
    if any(kwargs.get(name, getattr(generation_config, name, None)) for name in ("output_logprobs", "output_kept")):
        kwargs.setdefault("return_dict_in_generate", True)
    steps: queue.SimpleQueue[_Step | _Ending] = queue.SimpleQueue()
    closing = _Closing(cancel)
    contexts = contexts_of_this_thread()

    def run() -> None:
        try:
            with contextlib.ExitStack() as stack:
                for context in contexts:
                    stack.enter_context(context)
                output = generate(
                    model,
                    inputs,
                    generation_config,
                    tokenizer=tokenizer,
                    cancel=closing,
                    streamer=_Steps(steps),
                    **kwargs,
                )
            steps.put(_Ending(output, None))
        except BaseException as error:
            steps.put(_Ending(None, error))

    thread = threading.Thread(target=contextvars.copy_context().run, args=(run,), name="pygen.stream")
    thread.start()
    texts: dict[int, RowText | CleanedRowText] = {}
    kwargs_of_text = dict(decode_kwargs or {})
    if getattr(tokenizer, "clean_up_tokenization_spaces", False):
        kwargs_of_text.setdefault("clean_up_tokenization_spaces", False)
    ended: set[int] = set()
    try:
        while isinstance(step := steps.get(), _Step):
            for row, (token_id, logprob, reason) in enumerate(zip(*step, strict=True)):
                if row in ended:
                    continue
                text = None
                if tokenizer is not None:
                    if row not in texts:
                        texts[row] = row_text(tokenizer, kwargs_of_text)
                    text = texts[row].add([token_id]) + (texts[row].finish() if reason is not None else "")
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
    output: Tensor | GenerateOutput | None
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
