"""Decodes the tokens of a growing row into pieces of text that later tokens do not change."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

from pygen.request.protocols import TextDecoder

_BYTE_TOKEN = re.compile("<0x[0-9A-Fa-f]{2}>")
_INCOMPLETE = "�"  # decoders show this for bytes that do not make up a character, or not yet
_CLEANS = "clean_up_tokenization_spaces"
_WINDOW = 16  # tokens that `add` decodes again with the next one; parts of one character may be more
# What follows the first space that `clean_up_tokenization` may change: " .", " n't", " 've" and the like.
_CLEANED_LATER = re.compile(r"(?: [ .?!,'nmtsver]*)?\Z")


def row_text(tokenizer: TextDecoder, decode_kwargs: Mapping[str, object]) -> RowText | CleanedRowText:
    """Decodes one row piece by piece, as `tokenizer.decode(ids, **decode_kwargs)` does at once.

    tokenizer: anything with `decode(list[int], **decode_kwargs) -> str`.
    """
    clean = getattr(tokenizer, "clean_up_tokenization", None)
    if clean is not None and decode_kwargs.get(_CLEANS, getattr(tokenizer, _CLEANS, False)):
        return CleanedRowText(tokenizer, decode_kwargs, clean)
    return RowText(tokenizer, decode_kwargs)


class RowText:
    """All results of `add`, and then that of `finish`, together are `tokenizer.decode(all ids, **decode_kwargs)`.

    Two kinds of text wait for later tokens: bytes that do not make up a character yet, and tokens of single bytes.
    Some decoders show none of the latter if the last of them do not make up a character.
    """

    def __init__(self, tokenizer: TextDecoder, decode_kwargs: Mapping[str, object]) -> None:
        self._decode_kwargs = decode_kwargs
        self._tokenizer = tokenizer
        self._name_of = getattr(tokenizer, "convert_ids_to_tokens", None) or getattr(tokenizer, "id_to_token", None)
        self._window: list[int] = []  # the last tokens; the text of the first ones is already out
        self._shown = 0  # characters of the window's text that are out
        self._settled = 0  # leading tokens of the window whose whole text is out

    def add(self, token_ids: Sequence[int]) -> str:
        """The text that is final once the row continues with `token_ids`."""
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
        """The text that still waits."""
        return self._decode(self._window)[self._shown :] if self._window else ""

    def _shorten(self) -> None:
        """Drops the tokens before the last settled one. One stays, since the first token of a text loses its space."""
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
    """`RowText` for a tokenizer that cleans up spaces, which may change the characters after a space."""

    def __init__(
        self, tokenizer: TextDecoder, decode_kwargs: Mapping[str, object], clean: Callable[[str], object]
    ) -> None:
        self._tokenizer = tokenizer
        self._decode_kwargs = decode_kwargs
        self._clean = clean
        self._raw = RowText(tokenizer, {**decode_kwargs, _CLEANS: False})
        self._waiting = ""
        self._token_ids: list[int] = []
        self._cleans: bool | None = None  # later releases of transformers skip the clean-up for BPE

    def add(self, token_ids: Sequence[int]) -> str:
        """The text that is final once the row continues with `token_ids`."""
        self._token_ids.extend(token_ids)
        return self._cut(self._waiting + self._raw.add(token_ids))

    def finish(self) -> str:
        """The text that still waits."""
        return self._cleaned(self._waiting + self._raw.finish())

    def _cut(self, text: str) -> str:
        found = _CLEANED_LATER.search(text)
        assert found is not None
        self._waiting = text[found.start() :]
        return self._cleaned(text[: found.start()])

    def _cleaned(self, text: str) -> str:
        cleaned = str(self._clean(text))
        if cleaned != text and self._cleans is None:
            decode, ids = self._tokenizer.decode, self._token_ids
            raw = decode(ids, **{**self._decode_kwargs, _CLEANS: False})
            self._cleans = decode(ids, **self._decode_kwargs) != raw
        return cleaned if self._cleans else text
