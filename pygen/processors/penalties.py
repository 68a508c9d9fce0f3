"""Processors that change the scores of some tokens by a factor."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from pygen.processors._checks import existing, id_tensor, rows_of_batch
from pygen.processors.base import LogitsProcessor, process
from pygen.rules import checked, integer, number


class RepetitionPenaltyLogitsProcessor(LogitsProcessor):
    """Every distinct id of a row's sequence, once: s * penalty where s < 0, else s / penalty (Keskar et al. 2019).

    penalty: finite and > 0; above 1 it makes repetition rarer.
    prompt_ignore_length: columns at the start to ignore; None and 0 ignore none. Or one number per prompt,
        (batch_size,) integers, each for the adjacent rows of its prompt.

    input_ids: (rows, length), or (rows,) for one id each. Ids outside the vocabulary are ignored; write -1 to hide
    padding.
    """

    supports_continuous_batching = False
    skips_hidden = True

    def __init__(self, penalty: float, prompt_ignore_length: int | Tensor | None = None) -> None:
        self.penalty = float(checked("penalty", penalty, number("(0, inf)")))
        if isinstance(prompt_ignore_length, Tensor):
            if prompt_ignore_length.dim() != 1 or prompt_ignore_length.is_floating_point():
                raise ValueError(
                    f"`prompt_ignore_length` must be an integer or hold one per prompt, got "
                    f"{prompt_ignore_length.dtype} {tuple(prompt_ignore_length.shape)}"
                )
        elif prompt_ignore_length is not None:
            prompt_ignore_length = checked("prompt_ignore_length", prompt_ignore_length, integer(0))
        self.prompt_ignore_length = prompt_ignore_length

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        seen = input_ids[:, None] if input_ids.dim() == 1 else input_ids
        if isinstance(self.prompt_ignore_length, Tensor):
            ignored = rows_of_batch("prompt_ignore_length", self.prompt_ignore_length[:, None], seen.shape[0])
            places = torch.arange(seen.shape[1], device=seen.device)
            seen = seen.masked_fill(places < ignored.to(seen.device), -1)
        elif self.prompt_ignore_length is not None:
            seen = seen[:, self.prompt_ignore_length :]
        return _penalize(scores, seen, self.penalty)


class EncoderRepetitionPenaltyLogitsProcessor(LogitsProcessor):
    """Every distinct id of a row's encoder input, once: s / penalty where s < 0, else s * penalty.

    penalty: finite and > 0; above 1 it favours tokens of the input. The attribute `penalty` holds 1 / penalty.
    encoder_input_ids: (batch_size, length); with more rows of scores than that, each serves as many adjacent
        rows. Ids outside the vocabulary are ignored.
    """

    supports_continuous_batching = False

    def __init__(self, penalty: float, encoder_input_ids: torch.LongTensor | Tensor) -> None:
        self.penalty = 1 / float(checked("penalty", penalty, number("(0, inf)")))
        self.encoder_input_ids = encoder_input_ids

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        seen = rows_of_batch("encoder_input_ids", self.encoder_input_ids, scores.shape[0])
        return _penalize(scores, seen, self.penalty)


class ExponentialDecayLengthPenalty(LogitsProcessor):
    """s + |s| * (factor ** n - 1) for every end-of-sequence id, n the number of tokens beyond the start.

    exponential_decay_length_penalty: (start, factor); it acts after more than `start` generated tokens; a factor above
        1 favours the end increasingly.
    eos_token_id: an id, a list or a tensor of them, >= 0; ids outside the vocabulary are ignored.
    input_ids_seq_length: the length of the prompt.

    A result above all numbers of the dtype becomes a 64th of the largest, which leaves room for a temperature. Scores
    that are infinite or NaN stay as they are.
    """

    def __init__(
        self,
        exponential_decay_length_penalty: tuple[int, float],
        eos_token_id: int | list[int] | Tensor,
        input_ids_seq_length: int,
    ) -> None:
        start, factor = exponential_decay_length_penalty
        self.regulation_start = start + input_ids_seq_length
        self.regulation_factor = factor
        self.eos_token_id = id_tensor("eos_token_id", eos_token_id, low=0)
        self._existing = self.eos_token_id
        self._vocab_size = -1

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        beyond = input_ids.shape[-1] - self.regulation_start
        if beyond <= 0:
            return scores
        if self._vocab_size != scores.shape[1] or self._existing.device != scores.device:
            self._vocab_size = scores.shape[1]
            self._existing = existing(self.eos_token_id, self._vocab_size).to(scores.device)
        eos_scores = scores[:, self._existing]
        computed = torch.promote_types(scores.dtype, torch.float32)
        moved = eos_scores + eos_scores.abs() * _growth(self.regulation_factor, beyond, torch.finfo(computed).max)
        moved = moved.masked_fill(moved == math.inf, torch.finfo(scores.dtype).max / 64)
        return scores.index_copy(1, self._existing, torch.where(eos_scores.isfinite(), moved, eos_scores))


def _growth(factor: float, exponent: int, largest: float) -> float:
    """factor ** exponent - 1, within [-largest, largest]."""
    try:
        growth = float(factor) ** exponent - 1
    except OverflowError:
        growth = -math.inf if factor < 0 and exponent % 2 else math.inf
    return max(-largest, min(growth, largest))


def _penalize(scores: Tensor, seen: Tensor, penalty: float) -> Tensor:
    seen = seen.to(device=scores.device, dtype=torch.int64).contiguous()
    knobs: dict[str, Any] = {"repetition_penalty": penalty, "input_ids": seen}
    return process(scores, do_sample=False, **knobs)
