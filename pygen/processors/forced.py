"""Processors that leave one choice at a given place: its score is 0, all others are -inf."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pygen.processors._checks import id_tensor
from pygen.processors.base import LogitsProcessor


class ForcedBOSTokenLogitsProcessor(LogitsProcessor):
    """`bos_token_id` after a sequence of one token."""

    def __init__(self, bos_token_id: int) -> None:
        self.bos_token_id = bos_token_id

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return _only(scores, self.bos_token_id) if input_ids.shape[-1] == 1 else scores


class ForcedEOSTokenLogitsProcessor(LogitsProcessor):
    """`eos_token_id`, an id >= 0, a list or a tensor of them, after a sequence of `max_length` - 1 tokens."""

    def __init__(self, max_length: int, eos_token_id: int | list[int] | Tensor, device: str = "cpu") -> None:
        self.max_length = max_length
        self.eos_token_id = id_tensor("eos_token_id", eos_token_id, device, low=0)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return _only(scores, self.eos_token_id) if input_ids.shape[-1] == self.max_length - 1 else scores


def _only(scores: Tensor, token_ids: int | Tensor) -> Tensor:
    forced = torch.full_like(scores, -math.inf)
    forced[:, token_ids] = 0
    return forced
