"""Looks up stop strings of any number and length on the host, backwards from the last token."""

from __future__ import annotations

import itertools
from bisect import bisect_right

import torch
from torch import Tensor

from pygen.stopping.token_bytes import TokenBytes

_FIRST_LOOK = 8  # tokens before the last one that `_ends` reads first; each further look reads four times as many


class StopSuffixes:
    """A sorted list of the reversed stop strings.

    No entry begins with another, since a string that ends in another one is redundant. So only one entry can begin a
    reversed text: the last one that sorts before the text or equals it.
    """

    def __init__(self, vocabulary: TokenBytes, strings: list[bytes]) -> None:
        """ValueError where no token of `vocabulary` can end any of the strings."""
        self._patterns: list[bytes] = []
        for pattern in sorted({string[::-1] for string in strings}):
            if not self._patterns or not pattern.startswith(self._patterns[-1]):
                self._patterns.append(pattern)
        self._pieces = vocabulary.pieces
        self._last_bytes = {pattern[0] for pattern in self._patterns}
        self._backwards: dict[int, tuple[bytes, ...]] = {}
        if not any(map(self._may_end, self._pieces)):
            raise ValueError("no token of the vocabulary can end any of")

    @property
    def num_bytes(self) -> int:
        """About the memory that it takes."""
        return sum(map(len, self._patterns)) + 64 * (len(self._patterns) + len(self._pieces))

    def ended(self, input_ids: Tensor) -> Tensor:
        """(rows,) bool: whether a string ends in the last token of each row (rows, length)."""
        answers = [bool(self._may_end(token_id)) for token_id in input_ids[:, -1].tolist()]
        for row in itertools.compress(range(len(answers)), list(answers)):
            answers[row] = self._ends(input_ids[row])
        return torch.tensor(answers, dtype=torch.bool, device=input_ids.device)

    def _may_end(self, token_id: int) -> tuple[bytes, ...]:
        """The prefixes of a token that may end a string there, reversed. A cache keeps the tokens asked for."""
        found = self._backwards.get(token_id)
        if found is None:
            piece = self._pieces.get(token_id, b"")[::-1]
            starts = (piece[index:] for index, byte in enumerate(piece) if byte in self._last_bytes)
            found = self._backwards[token_id] = tuple(text for text in starts if self._begins(text) is not False)
        return found

    def _ends(self, row: Tensor) -> bool:
        texts, before, look = self._may_end(int(row[-1])), b"", 0
        while True:
            answers = [self._begins(text + before) for text in texts]
            if True in answers:
                return True
            texts = tuple(text for text, answer in zip(texts, answers, strict=True) if answer is None)
            if not texts or look >= len(row):
                return False
            look = 4 * look or _FIRST_LOOK
            before = self._before(row[max(len(row) - 1 - look, 0) : -1])

    def _before(self, token_ids: Tensor) -> bytes:
        """The reversed text of tokens (length,), back to the last unknown one."""
        pieces = (self._pieces.get(token_id) for token_id in reversed(token_ids.tolist()))
        known = itertools.takewhile(lambda piece: piece is not None, pieces)
        return b"".join(piece[::-1] for piece in known if piece)

    def _begins(self, text: bytes) -> bool | None:
        """Whether `text` begins with a pattern; None where that depends on more of the text."""
        at = bisect_right(self._patterns, text)
        if at > 0 and text.startswith(self._patterns[at - 1]):
            return True
        return None if at < len(self._patterns) and self._patterns[at].startswith(text) else False
