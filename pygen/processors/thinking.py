"""A limit of the tokens that a model reasons with before it answers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from pygen.processors.base import LogitsProcessor
from pygen.request.protocols import Tokenizer
from pygen.rules import checked, integer


class ThinkingBudgetLogitsProcessor(LogitsProcessor):
    """After `thinking_budget` tokens of reasoning the ids of `thinking_end` follow, one after the other.

        begin = the column after the last `thinking_start`, or prompt_length if that is None
        row reasons  <=>  it has begun, and no `thinking_end` follows at or after `begin`
        forced  <=>  row reasons and length - max(begin, prompt_length) >= thinking_budget

    A row that is over its budget continues with the id of `thinking_end` that follows what it ends with, so a marker
    that the model has begun by itself is completed: that id has score 0, all others -inf. The result depends on a row's
    ids alone, so beams and drafts are followed.

    Arguments:
        thinking_budget: tokens of reasoning at most, >= 0; those of the prompt do not count.
        thinking_end, thinking_start: the ids of the markers, for example those of `</think>` and `<think>`. Without
            `thinking_start` a row reasons from its first generated token on.
        prompt_length: columns of the prompt.

    Errors: ValueError for an empty marker, or where the scores do not have an id of `thinking_end`.
    """

    supports_continuous_batching = True

    def __init__(
        self,
        thinking_budget: int,
        thinking_end: Sequence[int],
        thinking_start: Sequence[int] | None = None,
        prompt_length: int = 0,
    ) -> None:
        self.thinking_budget = checked("thinking_budget", thinking_budget, integer(0))
        self.thinking_end = _marker("thinking_end", thinking_end)
        self.thinking_start = None if thinking_start is None else _marker("thinking_start", thinking_start)
        self.prompt_length = checked("prompt_length", prompt_length, integer(0))

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if max(self.thinking_end) >= scores.shape[-1]:
            raise ValueError(
                f"`thinking_end` must hold ids below the vocabulary size {scores.shape[-1]}, got {self.thinking_end}"
            )
        forced = self._next_ids(input_ids)
        only = torch.full_like(scores, -math.inf).scatter(1, forced.clamp(min=0)[:, None], 0.0)
        return torch.where((forced >= 0)[:, None], only, scores)

    def _next_ids(self, input_ids: Tensor) -> Tensor:
        """(rows,) int64: the id that must follow, or -1."""
        length = input_ids.shape[1]
        columns = torch.arange(length, device=input_ids.device)
        if self.thinking_start is None:
            begin = torch.full_like(input_ids[:, 0], self.prompt_length)
        else:
            ends = _ends_of(input_ids, self.thinking_start)
            begin = torch.where(ends, columns + 1, -1).amax(1)
        first_column = columns - (len(self.thinking_end) - 1)
        over = (_ends_of(input_ids, self.thinking_end) & (first_column >= begin[:, None])).any(1)
        spent = length - begin.clamp(min=self.prompt_length)
        forced = (begin >= 0) & ~over & (spent >= self.thinking_budget)
        return torch.where(forced, self._continuation(input_ids, begin), -1)

    def _continuation(self, input_ids: Tensor, begin: Tensor) -> Tensor:
        """The id of the end marker after the longest beginning of it that a row ends with."""
        marker, length = input_ids.new_tensor(self.thinking_end), input_ids.shape[1]
        following = marker[0].expand(len(input_ids))
        for count in range(1, len(marker)):
            if count <= length:
                ends_so = (input_ids[:, length - count :] == marker[:count]).all(1) & (length - count >= begin)
                following = torch.where(ends_so, marker[count], following)
        return following


def marker_ids(name: str, marker: str | Sequence[int], tokenizer: Tokenizer | None) -> list[int]:
    """The ids of a marker that is given by its text or by its ids. ValueError for a text without a tokenizer."""
    if not isinstance(marker, str):
        return [*marker]
    if tokenizer is None:
        raise ValueError(f"`{name}`={marker!r} needs the model's tokenizer: pass it as `tokenizer=`, or give its ids")
    token_id = tokenizer.get_vocab().get(marker)
    ids = tokenizer(marker, add_special_tokens=False).input_ids if token_id is None else [token_id]
    return [*map(int, ids)]


def _marker(name: str, ids: Sequence[int]) -> list[int]:
    if not ids:
        raise ValueError(f"`{name}` must hold at least one id, got {ids!r}")
    return [checked(name, token_id, integer(0)) for token_id in ids]


def _ends_of(input_ids: Tensor, marker: Sequence[int]) -> Tensor:
    """(rows, length) bool: where an occurrence of `marker` ends."""
    found = torch.ones_like(input_ids, dtype=torch.bool)
    for back, token_id in enumerate(reversed(marker)):
        shifted = torch.zeros_like(found)
        shifted[:, back:] = input_ids[:, : max(input_ids.shape[1] - back, 0)] == token_id
        found &= shifted
    return found
