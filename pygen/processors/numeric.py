"""Processors that repair or normalise scores."""

from __future__ import annotations

from torch import Tensor

from pygen.processors.base import LogitsProcessor


class InfNanRemoveLogitsProcessor(LogitsProcessor):
    """NaN becomes 0, +inf and -inf the largest and the smallest number of the dtype."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return scores.nan_to_num(nan=0.0)


class LogitNormalization(LogitsProcessor):
    """log_softmax(s), so that the probabilities of a row sum to 1."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return scores.log_softmax(dim=-1)
