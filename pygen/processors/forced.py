"""Processors that leave one choice at a given length: its score is 0, all others are -inf."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pygen.processors._checks import existing, id_tensor
from pygen.processors.base import LogitsProcessor
from pygen.rules import checked, integer


class ForcedBOSTokenLogitsProcessor(LogitsProcessor):
    """`bos_token_id`, an id >= 0, after a sequence of one token. ValueError there if the scores do not have it."""

    def __init__(self, bos_token_id: int) -> None:
        self.bos_token_id = checked("bos_token_id", bos_token_id, integer(0))

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if input_ids.shape[-1] != 1:
            return scores
        return _only("bos_token_id", torch.tensor([self.bos_token_id], device="cpu"), scores)


class ForcedEOSTokenLogitsProcessor(LogitsProcessor):
    """`eos_token_id`, an id >= 0, a list or a tensor of them, after a sequence of `max_length` - 1 tokens.

    ValueError there if the scores do not have all of them.
    """

    def __init__(self, max_length: int, eos_token_id: int | list[int] | Tensor, device: str = "cpu") -> None:
        self.max_length = max_length
        self.eos_token_id = id_tensor("eos_token_id", eos_token_id, device, low=0)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if input_ids.shape[-1] != self.max_length - 1:
            return scores
        return _only("eos_token_id", self.eos_token_id, scores)


def _only(name: str, token_ids: Tensor, scores: Tensor) -> Tensor:
    if len(existing(token_ids, scores.shape[-1])) < len(token_ids):
        raise ValueError(
            f"`{name}` must hold ids below the vocabulary size {scores.shape[-1]}, got {token_ids.tolist()}"
        )
    return torch.full_like(scores, -math.inf).index_fill(1, token_ids.to(scores.device), 0)
