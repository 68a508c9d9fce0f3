"""Drafts for a batch from generators of one row each."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pygen.candidates.assistant import AssistedCandidateGenerator
from pygen.candidates.drafter import CountedDrafts, DraftSettings


class OneByOne(CountedDrafts):
    """Drafts each row with its own generator, without padding; all rows get as many drafts as the row with the fewest.

    prompt_ids: (rows, length) int64.
    mask: (rows, length), 0 where `prompt_ids` are padding; None without padding.
    make: (prompt (1, its length), number of padding columns) -> the row's generator.
    """

    def __init__(
        self,
        prompt_ids: Tensor,
        mask: Tensor | None,
        make: Callable[[Tensor, int], AssistedCandidateGenerator],
        settings: DraftSettings,
    ) -> None:
        self._length = prompt_ids.shape[1]
        texts = [row if mask is None else row[mask[i] != 0] for i, row in enumerate(prompt_ids)]
        self._prompts = [text[None] for text in texts]
        self._generators = [make(prompt, self._length - prompt.shape[1]) for prompt in self._prompts]
        self.use_settings(settings)
        for generator in self._generators:
            generator.use_settings(settings)

    def draft_for(self, vocab_size: int) -> None:
        """vocab_size: the number of columns of the model's logits."""
        for generator in self._generators:
            generator.draft_for(vocab_size)

    def get_candidates(
        self, input_ids: Tensor, *, rows: Sequence[int] | None = None, **kwargs: object
    ) -> tuple[Tensor, Tensor | None]:
        """rows: the batch indices of `input_ids` (n, length); None means all rows."""
        drafts: list[Tensor] = []
        scores: list[Tensor] = []
        for ids, row in zip(input_ids, range(len(input_ids)) if rows is None else rows, strict=True):
            generator, text = self._generators[row], torch.cat([self._prompts[row], ids[None, self._length :]], dim=1)
            generator.num_assistant_tokens = self.num_assistant_tokens
            found, of_row = generator.get_candidates(text)
            if found.shape[1] == text.shape[1]:
                return input_ids, None
            drafts.append(found[:, text.shape[1] :])
            if of_row is not None:
                scores.append(of_row)
        # The cut depends on the other rows only, so the remaining drafts still follow their scores.
        count = min(of_row.shape[1] for of_row in drafts)
        tokens = torch.cat([input_ids, torch.cat([of_row[:, :count] for of_row in drafts])], dim=1)
        return tokens, torch.cat([of_row[:, :count] for of_row in scores]) if scores else None
