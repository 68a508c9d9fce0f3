"""Streamers: objects that receive tokens while they are generated."""

from __future__ import annotations

from typing import Any

from torch import Tensor

# Blocks of ideographs, which are written without spaces: each one may be shown as soon as it is complete.
_IDEOGRAPHS = (
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0x20000, 0x2A6DF),
    (0x2A700, 0x2CEAF),
    (0x2F800, 0x2FA1F),
)


class BaseStreamer:
    """Receives the prompts (rows, prompt_length), then the tokens (rows,) of every step, all int64 on the CPU."""

    def put(self, value: Tensor) -> None:
        raise NotImplementedError

    def end(self) -> None:
        """Called once, after the last token or when generation failed."""
        raise NotImplementedError


class TextStreamer(BaseStreamer):
    """Prints one row's text while it grows, holding back what the next token may still change.

    Text is final up to its last space, up to its end when that is a line break or an ideograph, and at `end()`.
    Override `on_finalized_text` to send the text elsewhere.

    tokenizer: anything with `decode(list[int], **decode_kwargs) -> str`.
    skip_prompt: do not show the prompt.
    Errors: ValueError when more than one row arrives.
    """

    def __init__(self, tokenizer: Any, skip_prompt: bool = False, **decode_kwargs: Any) -> None:
        self.tokenizer = tokenizer
        self.skip_prompt = skip_prompt
        self.decode_kwargs = decode_kwargs
        self.token_cache: list[int] = []
        self.print_len = 0
        self.next_tokens_are_prompt = True

    def put(self, value: Tensor) -> None:
        if value.ndim > 1:
            if value.shape[0] > 1:
                raise ValueError(f"`TextStreamer` streams one row, got {value.shape[0]}")
            value = value[0]
        is_prompt, self.next_tokens_are_prompt = self.next_tokens_are_prompt, False
        if is_prompt and self.skip_prompt:
            return
        self.token_cache.extend(value.tolist())
        text = self._decode()
        final = self._final_length(text)
        self.on_finalized_text(text[self.print_len : final])
        if text.endswith("\n"):
            self._forget()
        else:
            self.print_len = max(self.print_len, final)

    def end(self) -> None:
        rest = self._decode()[self.print_len :] if self.token_cache else ""
        self._forget()
        self.next_tokens_are_prompt = True
        self.on_finalized_text(rest, stream_end=True)

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Receives every piece of final text; `stream_end` marks the last one."""
        print(text, flush=True, end="\n" if stream_end else "")

    def _decode(self) -> str:
        return str(self.tokenizer.decode(self.token_cache, **self.decode_kwargs))

    def _forget(self) -> None:
        self.token_cache = []
        self.print_len = 0

    @staticmethod
    def _final_length(text: str) -> int:
        if text and (text[-1] == "\n" or any(first <= ord(text[-1]) <= last for first, last in _IDEOGRAPHS)):
            return len(text)
        return text.rfind(" ") + 1
