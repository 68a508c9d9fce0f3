"""The interface of candidate generators, which draft the next tokens for the model to check."""

from __future__ import annotations

from typing import Any

from torch import Tensor


class CandidateGenerator:
    """Base class. A loop gets drafts, has the model check them in one forward, and reports how many it accepted."""

    # The loop of transformers after 5.6.1 reads this: whether to pass the model's outputs to `get_candidates`.
    requires_model_outputs = False

    def get_candidates(self, input_ids: Tensor, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        """(rows, length) int64 -> the ids followed by k >= 0 drafts, (rows, length + k), and the drafts' scores.

        The scores are the processed ones that the generator drew the drafts from, (rows, k, vocab_size) float32, or
        None. kwargs: more about the model, from transformers' loop.
        """
        raise NotImplementedError(f"{type(self).__name__} must define `get_candidates`")

    def update_candidate_strategy(self, input_ids: Tensor, scores: Tensor, num_matches: int) -> None:
        """The loop calls this after every round.

        input_ids: (rows, length) int64, with the accepted drafts. scores: (rows, k + 1, vocab_size), the model's.
        num_matches: the number of accepted drafts.
        """
        raise NotImplementedError(f"{type(self).__name__} must define `update_candidate_strategy`")
