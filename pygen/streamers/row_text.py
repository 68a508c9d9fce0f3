"""The text of a row that grows by tokens, in pieces that are never taken back."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

_BYTE_TOKEN = re.compile("<0x[0-9A-Fa-f]{2}>")
_INCOMPLETE = "�"  # what decoders show for bytes that are no character, or not yet
_CLEANS = "clean_up_tokenization_spaces"
_WINDOW = 16  # tokens that are decoded again with the next one, at most, unless they are parts of one character
# What follows the first space of a place that `clean_up_tokenization` may change: " .", " n't", " 've" and the like.
_CLEANED_LATER = re.compile(r"(?: [ .?!,'nmtsver]*)?\Z")


def row_text(tokenizer: Any, decode_kwargs: Mapping[str, Any]) -> RowText | CleanedRowText:
    """The text of a row as `tokenizer.decode(ids, **decode_kwargs)` gives it.

    tokenizer: anything with `decode(list[int], **decode_kwargs) -> str`.
    """
    cleans = decode_kwargs.get("clean_up_tokenization_spaces", getattr(tokenizer, _CLEANS, False))
    return (CleanedRowText if cleans and hasattr(tokenizer, "clean_up_tokenization") else RowText)(
        tokenizer, decode_kwargs
    )


class RowText:
    """The pieces, one after the other and `finish()` last, are `tokenizer.decode(all ids, **decode_kwargs)`.

    Held back are bytes that are no character yet, and tokens of single bytes, of which some decoders show none if the
    last of them are no character.
    """

    def __init__(self, tokenizer: Any, decode_kwargs: Mapping[str, Any]) -> None:
        self._decode_kwargs = decode_kwargs
        self._tokenizer = tokenizer
        self._name_of = getattr(tokenizer, "convert_ids_to_tokens", None) or getattr(tokenizer, "id_to_token", None)
        self._window: list[int] = []  # the last tokens, the first of which belong to text that was shown
        self._shown = 0  # characters of the window's text
        self._settled = 0  # tokens of the window after which all of the text was shown

    def add(self, token_ids: Sequence[int]) -> str:
        """What can be shown now that the row goes on with `token_ids`."""
        self._window.extend(token_ids)
        if not self._window or self._is_byte(self._window[-1]):
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
        return self._decode(self._window)[self._shown :] if self._window else ""

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


class CleanedRowText:
    """The same where the tokenizer cleans up spaces, which changes what stands behind a space."""

    def __init__(self, tokenizer: Any, decode_kwargs: Mapping[str, Any]) -> None:
        self._tokenizer = tokenizer
        self._decode_kwargs = decode_kwargs
        self._raw = RowText(tokenizer, {**decode_kwargs, _CLEANS: False})
        self._held = ""
        self._token_ids: list[int] = []
        self._cleans: bool | None = None  # later releases of transformers ask for it and leave it out for BPE

    def add(self, token_ids: Sequence[int]) -> str:
        """What can be shown now that the row goes on with `token_ids`."""
        self._token_ids.extend(token_ids)
        return self._cut(self._held + self._raw.add(token_ids))

    def finish(self) -> str:
        """What was held back."""
        return self._cleaned(self._held + self._raw.finish())

    def _cut(self, text: str) -> str:
        found = _CLEANED_LATER.search(text)
        assert found is not None
        self._held = text[found.start() :]
        return self._cleaned(text[: found.start()])

    def _cleaned(self, text: str) -> str:
        cleaned = str(self._tokenizer.clean_up_tokenization(text))
        if cleaned != text and self._cleans is None:
            decode, ids = self._tokenizer.decode, self._token_ids
            raw = decode(ids, **{**self._decode_kwargs, _CLEANS: False})
            self._cleans = decode(ids, **self._decode_kwargs) != raw
        return cleaned if self._cleans else text
