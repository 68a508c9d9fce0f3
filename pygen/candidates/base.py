"""What a candidate generator is: something that guesses the next tokens, for the model to check."""

from __future__ import annotations

from typing import Any

from torch import Tensor


class CandidateGenerator:
    """Base class. A loop asks for drafts, has the model check them in one forward, and tells how many were right."""

    # The loop of transformers after 5.6.1 asks whether to pass the model's outputs to `get_candidates`.
    requires_model_outputs = False

    def get_candidates(self, input_ids: Tensor, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        """(rows, length) int64 -> the ids with drafts behind them, (rows, length + k), k >= 0.

        And the processed scores that the drafts were drawn from, (rows, k, vocab_size) float32, or None. kwargs: for
        generators that transformers' loop tells more about the model.
        """
        raise NotImplementedError(f"{type(self).__name__} must define `get_candidates`")

    def update_candidate_strategy(self, input_ids: Tensor, scores: Tensor, num_matches: int) -> None:
        """After every round: the ids as they are now, the scores (rows, k + 1, vocab_size), and the drafts kept."""
        raise NotImplementedError(f"{type(self).__name__} must define `update_candidate_strategy`")
