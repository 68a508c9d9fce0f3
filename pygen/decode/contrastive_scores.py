"""How contrastive search ranks the candidates for the next token (Su et al. 2022), in plain torch on any device."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pygen.ops._growth import first_capacity, grown_capacity, widened


def contrastive_scores(logprobs: Tensor, similarity: Tensor, penalty_alpha: float) -> Tensor:
    """(rows, k) float32: (1 - alpha) * p - alpha * similarity, and -inf where p is 0: such a token never follows.

    logprobs: (rows, k) float32, ln p of the candidates.
    similarity: (rows, k) float32, the largest cosine between a candidate and the text, as `Context.similarity` has it.
    """
    scores = (1 - penalty_alpha) * logprobs.exp() - penalty_alpha * similarity
    return scores.masked_fill(logprobs == -math.inf, -math.inf)


class Context:
    """The directions of the hidden states of all positions of a text, which candidates are compared with.

    All arithmetic is in float32, whatever the model's dtype. A state of norm 0 has cosine 0 with every other.
    """

    def __init__(self, states: Tensor, visible: Tensor | None, max_new_tokens: int) -> None:
        """states: (rows, length, width) of the prompts. visible: (rows, length), 0 for padding; None: nothing is."""
        rows, self._length, width = states.shape
        self._directions = states.new_empty(
            (rows, self._length + first_capacity(max_new_tokens), width), dtype=torch.float32
        )
        self._directions[:, : self._length] = _directions(states)
        self._hidden = torch.zeros(self._directions.shape[:2], dtype=torch.bool, device=states.device)
        if visible is not None:
            self._hidden[:, : self._length] = visible == 0

    def similarity(self, states: Tensor) -> Tensor:
        """(rows, k, width) of candidates -> (rows, k) float32, the largest cosine with a visible position."""
        cosines = _directions(states) @ self._directions[:, : self._length].mT
        # No cosine is smaller.
        cosines = cosines.masked_fill(self._hidden[:, None, : self._length], -1.0)
        return cosines.amax(dim=-1).nan_to_num(nan=1.0)

    def append(self, states: Tensor) -> None:
        """states: (rows, width) of the tokens that follow."""
        if self._length == self._directions.shape[1]:
            capacity = grown_capacity(self._length, self._length + 1)
            self._directions = widened(self._directions, capacity, dim=1)
            self._hidden = widened(self._hidden, capacity, dim=1)
        self._directions[:, self._length] = _directions(states)
        self._hidden[:, self._length] = False
        self._length += 1


def _directions(states: Tensor) -> Tensor:
    return torch.nn.functional.normalize(states.float(), dim=-1)
