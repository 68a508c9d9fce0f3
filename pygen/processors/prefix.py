"""Restricts tokens to those that the caller's function allows, and ends a text where it allows none."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from pygen.processors.base import LogitsProcessor
from pygen.rules import plain, shown


class PrefixConstrainedLogitsProcessor(LogitsProcessor):
    """Only the tokens that a function allows (De Cao et al. 2021): `fn(batch_id, ids of the row) -> allowed ids`.

    num_beams: the number of adjacent rows of one batch_id. Ids outside the vocabulary are ignored. Raises ValueError
        where nothing is allowed.
    """

    def __init__(self, prefix_allowed_tokens_fn: Callable[[int, Tensor], Sequence[int]], num_beams: int) -> None:
        self._prefix_allowed_tokens_fn = prefix_allowed_tokens_fn
        self._num_beams = num_beams

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return self.for_rows(range(len(input_ids)), input_ids, scores)

    def for_rows(self, asked: Sequence[int], input_ids: Tensor, scores: Tensor, other: float = 0.0) -> Tensor:
        """Restricts the rows `asked` only, and adds `other` to the scores of the rest."""
        rows: list[int] = []
        token_ids: list[int] = []
        mask = torch.full_like(scores, other)
        mask[list(asked)] = -math.inf
        for row in asked:
            allowed = self._allowed(row // self._num_beams, input_ids[row], scores.shape[-1])
            rows += [row] * len(allowed)
            token_ids += allowed
        mask[rows, token_ids] = 0
        return scores + mask

    def _allowed(self, batch_id: int, sequence: Tensor, vocab_size: int) -> list[int]:
        answer = list(plain(self._prefix_allowed_tokens_fn(batch_id, sequence)))
        allowed = [token_id for token_id in answer if 0 <= token_id < vocab_size]
        if not allowed:
            raise ValueError(
                f"`prefix_allowed_tokens_fn` must allow some token in [0, {vocab_size}), "
                f"got {shown(answer)} for batch_id {batch_id}"
            )
        return allowed


class EndingPrefix:
    """`prefix_allowed_tokens_fn` of a call, in which an empty answer ends the text: only an end token may follow.

    eos_token_ids: the end tokens. If empty, `pad_token_id` ends a text, and `ends` is a stopping criterion.
    """

    def __init__(
        self, allowed: Callable[[int, Tensor], Iterable[int]], eos_token_ids: list[int], pad_token_id: int | None
    ) -> None:
        self._allowed = allowed
        self._eos_token_ids = eos_token_ids
        self._pad_token_id = pad_token_id
        self._ended: set[tuple[int, ...]] = set()

    def __call__(self, batch_id: int, sequence: Tensor) -> Sequence[int]:
        if self._has_ended(sequence):
            return self._pad(batch_id)
        allowed = list(plain(self._allowed(batch_id, sequence)))
        if allowed:
            return allowed
        if self._eos_token_ids:
            return self._eos_token_ids
        pad = self._pad(batch_id)
        self._ended.add(tuple(sequence.tolist()))
        return pad

    def _pad(self, batch_id: int) -> list[int]:
        if self._pad_token_id is None:
            raise ValueError(
                "`eos_token_id` or `pad_token_id` must be set where `prefix_allowed_tokens_fn` allows nothing, which "
                f"ends a text, got [] for batch_id {batch_id}"
            )
        return [self._pad_token_id]

    def ends(self, input_ids: Tensor, scores: object) -> Tensor:
        """(rows,) bool: the rows ended by an empty answer."""
        return torch.tensor([self._has_ended(row) for row in input_ids], dtype=torch.bool, device=input_ids.device)

    def _has_ended(self, sequence: Tensor) -> bool:
        """Whether the last token pads a text that has ended; a row runs until all rows have ended."""
        if not self._ended:
            return False
        *before, last = sequence.tolist()
        if last != self._pad_token_id or tuple(before) not in self._ended:
            return False
        self._ended.add((*before, last))
        return True
