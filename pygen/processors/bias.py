"""Processors that add to the scores of tokens that would complete given sequences."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pygen.config_rules import shown
from pygen.processors._checks import id_tensor
from pygen.processors.base import LogitsProcessor


class _Tables(NamedTuple):
    """The biases on the device of the scores; sequences are aligned on the right."""

    single: Tensor  # (vocab_size,) float32: biases of sequences of one token
    prefixes: Tensor  # (sequences, longest - 1) int64: all but the last token, then of any value where `padded`
    padded: Tensor  # (sequences, longest - 1) bool
    lengths: Tensor  # (sequences,) int64
    last: Tensor  # (sequences,) int64
    biases: Tensor  # (sequences,) float32


class SequenceBiasLogitsProcessor(LogitsProcessor):
    """s + b for every id that would complete a sequence with bias b; biases of several completed sequences add up.

    sequence_bias: {(id, ...): bias} or [[[id, ...], bias], ...], ids >= 0. A sequence of one token is always completed;
        a longer one where the row ends with all but its last token and is at least as long as the sequence.

    ValueError at the first call for ids outside the vocabulary.
    """

    def __init__(self, sequence_bias: list[list[list[int] | float]] | dict[tuple[int, ...], float]) -> None:
        self.sequence_bias: dict[tuple[int, ...], float] = _as_dict(sequence_bias)
        self._tables: _Tables | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        tables = self._tables
        if tables is None or tables.single.device != scores.device or tables.single.shape[0] != scores.shape[-1]:
            tables = self._tables = _build_tables(self.sequence_bias, scores)
        if len(tables.last) == 0:
            return scores + tables.single.to(scores.dtype)
        width = tables.prefixes.shape[1]
        length = input_ids.shape[1]
        tail = torch.nn.functional.pad(input_ids[:, max(length - width, 0) :], (max(width - length, 0), 0))
        completes = ((tail[:, None] == tables.prefixes) | tables.padded).all(-1) & (tables.lengths <= length)
        moves = torch.where(completes, tables.biases, 0.0).to(scores.dtype)
        bias = tables.single.to(scores.dtype).repeat(scores.shape[0], 1)
        return scores + bias.scatter_add_(1, tables.last.expand_as(moves), moves)


class NoBadWordsLogitsProcessor(SequenceBiasLogitsProcessor):
    """No token that would complete one of `bad_words_ids`: a sequence bias of -inf.

    bad_words_ids: a non-empty list of non-empty lists of ids >= 0.
    eos_token_id: entries that consist of one of these ids alone are left out.
    """

    def __init__(self, bad_words_ids: list[list[int]], eos_token_id: int | list[int] | Tensor | None = None) -> None:
        if not isinstance(bad_words_ids, list) or not bad_words_ids or not all(map(_is_id_list, bad_words_ids)):
            raise ValueError(
                f"`bad_words_ids` must be a non-empty list of non-empty lists of ids >= 0, got {shown(bad_words_ids)}"
            )
        self.bad_word_ids = bad_words_ids
        ends = [] if eos_token_id is None else id_tensor("eos_token_id", eos_token_id).tolist()
        banned = {tuple(ids): -math.inf for ids in bad_words_ids if not (len(ids) == 1 and ids[0] in ends)}
        self.sequence_bias = banned
        self._tables = None


def _as_dict(sequence_bias: Any) -> dict[tuple[int, ...], float]:
    """The biases by sequence; ValueError for anything else than the two forms."""
    if isinstance(sequence_bias, dict) and all(isinstance(ids, tuple) for ids in sequence_bias):
        pairs = list(sequence_bias.items())
    elif isinstance(sequence_bias, list) and all(_is_pair(item) for item in sequence_bias):
        pairs = [(tuple(ids), bias) for ids, bias in sequence_bias]
    else:
        pairs = []
    if not pairs or not all(_is_id_list(list(ids)) and _is_real(bias) for ids, bias in pairs):
        raise ValueError(
            f"`sequence_bias` must be a non-empty dict {{(ids): bias}} or list [[[ids], bias], ...] with ids >= 0 and "
            f"numbers as biases, got {shown(sequence_bias)}"
        )
    return {ids: float(bias) for ids, bias in pairs}


def _is_pair(item: Any) -> bool:
    return isinstance(item, (list, tuple)) and len(item) == 2 and isinstance(item[0], list)


def _is_id_list(ids: Any) -> bool:
    return isinstance(ids, list) and bool(ids) and all(isinstance(i, Integral) and int(i) >= 0 for i in ids)


def _is_real(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _build_tables(sequence_bias: dict[tuple[int, ...], float], scores: Tensor) -> _Tables:
    vocab_size, device = scores.shape[-1], scores.device
    outside = [token_id for ids in sequence_bias for token_id in ids if token_id >= vocab_size]
    if outside:
        raise ValueError(f"ids of biased sequences must be below the vocabulary size {vocab_size}, got {outside}")
    single = torch.zeros(vocab_size)
    for ids, bias in sequence_bias.items():
        if len(ids) == 1:
            single[ids[0]] = bias
    longer = {ids: bias for ids, bias in sequence_bias.items() if len(ids) > 1}
    width = max(map(len, longer), default=1) - 1
    padding = [width - len(ids) + 1 for ids in longer]
    prefixes = [[0] * pad + list(ids[:-1]) for pad, ids in zip(padding, longer, strict=True)]
    padded = [[place < pad for place in range(width)] for pad in padding]
    tables = _Tables(
        single=single,
        prefixes=torch.tensor(prefixes, dtype=torch.int64).reshape(len(longer), width),
        padded=torch.tensor(padded, dtype=torch.bool).reshape(len(longer), width),
        lengths=torch.tensor([len(ids) for ids in longer], dtype=torch.int64),
        last=torch.tensor([ids[-1] for ids in longer], dtype=torch.int64),
        biases=torch.tensor(list(longer.values()), dtype=torch.float32),
    )
    return _Tables(*(table.to(device) for table in tables))
