"""Drafts copied from the text: the tokens that followed an earlier occurrence of the last few tokens."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pygen.candidates.base import CandidateGenerator


class PromptLookupCandidateGenerator(CandidateGenerator):
    """Prompt lookup (Saxena, 2023). Per row, with n from `max_matching_ngram_size` down to 1::

        for each earlier occurrence of the last n tokens, leftmost first:
            drafts = the up to num_output_tokens tokens after it
            cut before the first draft that `logits_processor` forbids; next occurrence if nothing is left
            cut before the first end-of-sequence token; done

    Several rows get as many drafts as the row with the fewest.

    eos_token_id: (n,) int64, or None.
    max_length: of the whole text. The model chooses its last token, so a text of max_length - 1 tokens gets no drafts;
        the drafts of a shorter one may exceed max_length.
    logits_processor: (input_ids, scores) -> scores; it forbids a token by -inf or the lowest finite number.
    vocab_size: the number of columns of the model's scores; an id beyond them ends the drafts. `logits_processor`
        requires it, and receives scores of this width.

    Errors: ValueError for `num_output_tokens` or `max_matching_ngram_size` <= 0, and for `logits_processor` without
    `vocab_size`.
    """

    def __init__(
        self,
        eos_token_id: Tensor | None = None,
        num_output_tokens: int = 10,
        max_matching_ngram_size: int = 2,
        max_length: int = 20,
        logits_processor: Callable[[Tensor, Tensor], Tensor] | None = None,
        vocab_size: int | None = None,
    ):
        for name, value in (
            ("num_output_tokens", num_output_tokens),
            ("max_matching_ngram_size", max_matching_ngram_size),
        ):
            if value <= 0:
                raise ValueError(f"`{name}` must be > 0, got {value}")
        if logits_processor is not None and vocab_size is None:
            raise ValueError("`vocab_size` must be given with `logits_processor`")
        self.num_output_tokens = num_output_tokens
        self.max_matching_ngram_size = max_matching_ngram_size
        self.max_length = max_length
        self.eos_token_id = eos_token_id
        self.logits_processor = logits_processor
        self.vocab_size = vocab_size

    def get_candidates(self, input_ids: Tensor, **kwargs: object) -> tuple[Tensor, Tensor | None]:
        drafts = [self._lookup(row) for row in input_ids]
        width = min(len(of_row) for of_row in drafts)
        if width == 0:
            return input_ids, None
        return torch.cat([input_ids, torch.stack([of_row[:width] for of_row in drafts])], dim=1), None

    def update_candidate_strategy(self, input_ids: Tensor, scores: Tensor, num_matches: int) -> None:
        """Does nothing: the number of drafts is constant."""

    def _lookup(self, row: Tensor) -> Tensor:
        """(length,) -> the drafts of a row, (k,)."""
        length = len(row)
        if self.max_length <= length + 1:
            return row[:0]
        for n in range(min(self.max_matching_ngram_size, length - 1), 0, -1):
            indices = (row.unfold(0, n, 1) == row[length - n :]).all(1).nonzero()[:-1, 0]
            for index in indices.tolist():
                drafts = self._allowed(row, row[index + n : index + n + self.num_output_tokens])
                if len(drafts) > 0:
                    return self._before_end(drafts)
        return row[:0]

    def _allowed(self, row: Tensor, drafts: Tensor) -> Tensor:
        if self.vocab_size is not None:
            beyond = (drafts >= self.vocab_size).nonzero()
            drafts = drafts[: int(beyond[0])] if len(beyond) else drafts
        if self.logits_processor is None:
            return drafts
        assert self.vocab_size is not None
        for count, token_id in enumerate(drafts.tolist()):
            scores = torch.ones((1, self.vocab_size), device=row.device)
            score = self.logits_processor(torch.cat([row, drafts[:count]])[None], scores)[0, token_id]
            if score <= torch.finfo(score.dtype).min:
                return drafts[:count]
        return drafts

    def _before_end(self, drafts: Tensor) -> Tensor:
        if self.eos_token_id is None:
            return drafts
        ends = torch.isin(drafts, self.eos_token_id).nonzero()
        return drafts[: int(ends[0])] if len(ends) else drafts
