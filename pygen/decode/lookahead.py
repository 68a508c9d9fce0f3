"""How a model reads several candidates for one position, and goes on with one of them."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from pygen.models.adapter import ModelAdapter
from pygen.models.rows import select_rows


class Lookahead(Protocol):
    """A model during one call. In every step `look`, then either `take` or, where the call ends, `leave`.

    Records keep the prompts' entry and one for every candidate taken.
    """

    def prefill(self, prompt_ids: Tensor) -> tuple[Tensor, Tensor]:
        """(rows, prompt_length) -> logits (rows, vocab_size) after the prompts, and states (rows, length, width) of the
        last layer."""
        ...

    def look(self, token_ids: Tensor, candidates: Tensor) -> Tensor:
        """(rows, length), (rows, k) -> the last layer's states (rows, k, width) of every candidate behind its text."""
        ...

    def take(self, token_ids: Tensor, best: Tensor) -> Tensor:
        """Goes on with candidate best[r] of row r, the last of `token_ids` -> logits (rows, vocab_size) after it."""
        ...

    def leave(self) -> None:
        """Makes the model forget the candidates."""
        ...


class TogetherLookahead:
    """Reads all candidates in one forward: the model has `num_candidates` rows for each row of the text.

    `take` copies the last position of the candidate that was taken to the other rows.
    """

    def __init__(self, model: ModelAdapter, num_candidates: int) -> None:
        self._model = model
        self._count = num_candidates

    def prefill(self, prompt_ids: Tensor) -> tuple[Tensor, Tensor]:
        rows = prompt_ids.shape[0]
        logits = self._model.prefill(prompt_ids.repeat_interleave(self._count, dim=0))
        (states,) = self._model.take_hidden_states([-1])
        # Copies of a prompt may have been read once.
        states = states if states.shape[0] == rows else states[:: self._count]
        self._first = torch.arange(rows, device=prompt_ids.device) * self._count
        self._keep_records(self._first)
        return logits[:: self._count], states

    def look(self, token_ids: Tensor, candidates: Tensor) -> Tensor:
        self._model.hold()
        texts = token_ids.repeat_interleave(self._count, dim=0)
        self._logits = self._model.decode(torch.cat([texts, candidates.reshape(-1, 1)], dim=1))
        (states,) = self._model.take_hidden_states([-1])
        return states[:, -1].view(*candidates.shape, -1).to(token_ids.device)

    def take(self, token_ids: Tensor, best: Tensor) -> Tensor:
        rows = self._first + best
        everywhere = rows.repeat_interleave(self._count)
        self._model.reorder(everywhere, torch.zeros_like(everywhere), 1)
        self._keep_records(rows)
        return self._logits.index_select(0, rows)

    def leave(self) -> None:
        for entries in self._model.records.values():
            entries.pop()
        if self._model.shows_cache:
            self._model.align_cache(self._first, 1)

    def _keep_records(self, rows: Tensor) -> None:
        """Of the last forward's records, those of `rows` only."""
        for name, entries in self._model.records.items():
            entries[-1] = select_rows(entries[-1], rows, self._model.record_dims.get(name))


class SequentialLookahead:
    """A forward for one candidate after the other and one more for what was taken: the cache has one row per row."""

    def __init__(self, model: ModelAdapter) -> None:
        self._model = model

    def prefill(self, prompt_ids: Tensor) -> tuple[Tensor, Tensor]:
        logits = self._model.prefill(prompt_ids)
        if not self._model.can_crop:
            raise ValueError(
                "`low_memory` must be False for `model`, whose cache or states cannot be taken back, got True; with "
                "`use_cache`=False there is nothing to take back"
            )
        (states,) = self._model.take_hidden_states([-1])
        return logits, states

    def look(self, token_ids: Tensor, candidates: Tensor) -> Tensor:
        self._model.hold()
        read = []
        for candidate in candidates.T:
            self._model.decode(torch.cat([token_ids, candidate[:, None]], dim=1))
            (states,) = self._model.take_hidden_states([-1])
            read.append(states[:, -1].to(token_ids.device))
            self._model.crop(1)
            for entries in self._model.records.values():
                entries.pop()
        return torch.stack(read, dim=1)

    def take(self, token_ids: Tensor, best: Tensor) -> Tensor:
        logits = self._model.decode(token_ids)
        self._model.take_hidden_states([])
        return logits

    def leave(self) -> None:
        """Nothing is left of them."""
