"""Processors that add to the scores of tokens that would complete given sequences."""

from __future__ import annotations

import itertools
import math
from numbers import Real
from typing import NamedTuple

import torch
from torch import Tensor

from pygen.processors._checks import id_tensor
from pygen.processors.base import LogitsProcessor
from pygen.rules import is_id_lists, shown


class _Group(NamedTuple):
    """Sequences of several tokens, of similar lengths, aligned on the right."""

    prefixes: Tensor  # (sequences, longest - 1) int64: all but the last token; arbitrary where `padded`
    padded: Tensor  # (sequences, longest - 1) bool
    last: Tensor  # (sequences,) int64
    biases: Tensor  # (sequences,) float32

    def completed(self, input_ids: Tensor) -> Tensor:
        """(rows, sequences) bool: whether a row (rows, length) ends with all but the last token."""
        width = self.prefixes.shape[1]
        # -1 occurs in no sequence, so it pads the beginning of a row.
        tail = torch.nn.functional.pad(input_ids[:, -width:], (max(width - input_ids.shape[1], 0), 0), value=-1)
        return ((tail[:, None] == self.prefixes) | self.padded).all(-1)


class _Tables(NamedTuple):
    """The biases on the device of the scores."""

    single: Tensor  # (vocab_size,) float32: biases of sequences of one token
    groups: list[_Group]


class SequenceBiasLogitsProcessor(LogitsProcessor):
    """s + b for every id that would complete a sequence with bias b; biases of several completed sequences add up.

    sequence_bias: {(id, ...): bias} or [[[id, ...], bias], ...], ids >= 0. A sequence of one token is always completed;
        a longer one where the row ends with all but its last token.

    ValueError at the first call for ids outside the vocabulary.
    """

    skips_hidden = True

    def __init__(self, sequence_bias: list[list[list[int] | float]] | dict[tuple[int, ...], float]) -> None:
        self.sequence_bias: dict[tuple[int, ...], float] = _as_dict(sequence_bias)
        self._tables: _Tables | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        tables = self._tables
        if tables is None or tables.single.device != scores.device or tables.single.shape[0] != scores.shape[-1]:
            tables = self._tables = _build_tables(self.sequence_bias, scores)
        if not tables.groups:
            return scores + tables.single.to(scores.dtype)
        bias = tables.single.to(scores.dtype).repeat(scores.shape[0], 1)
        for group in tables.groups:
            moves = torch.where(group.completed(input_ids), group.biases, 0.0).to(scores.dtype)
            bias.scatter_add_(1, group.last.expand_as(moves), moves)
        return scores + bias


class NoBadWordsLogitsProcessor(SequenceBiasLogitsProcessor):
    """No token that would complete one of `bad_words_ids`: a sequence bias of -inf.

    bad_words_ids: a non-empty list of non-empty lists of ids >= 0.
    eos_token_id: entries that consist of one of these ids alone are left out.
    """

    def __init__(self, bad_words_ids: list[list[int]], eos_token_id: int | list[int] | Tensor | None = None) -> None:
        if not isinstance(bad_words_ids, list) or not is_id_lists(bad_words_ids):
            raise ValueError(
                f"`bad_words_ids` must be a non-empty list of non-empty lists of ids >= 0, got {shown(bad_words_ids)}"
            )
        self.bad_word_ids = bad_words_ids
        ends = set() if eos_token_id is None else set(id_tensor("eos_token_id", eos_token_id).tolist())
        banned = {tuple(ids): -math.inf for ids in bad_words_ids if not (len(ids) == 1 and ids[0] in ends)}
        self.sequence_bias = banned
        self._tables = None


def _as_dict(sequence_bias: object) -> dict[tuple[int, ...], float]:
    """The biases by sequence. Raises ValueError for any other form."""
    if isinstance(sequence_bias, dict) and all(isinstance(ids, tuple) for ids in sequence_bias):
        pairs = list(sequence_bias.items())
    elif isinstance(sequence_bias, list) and all(_is_pair(item) for item in sequence_bias):
        pairs = [(tuple(ids), bias) for ids, bias in sequence_bias]
    else:
        pairs = []
    if not is_id_lists([ids for ids, _ in pairs]) or not all(_is_real(bias) for _, bias in pairs):
        raise ValueError(
            f"`sequence_bias` must be a non-empty dict {{(ids): bias}} or list [[[ids], bias], ...] with ids >= 0 and "
            f"numbers as biases, got {shown(sequence_bias)}"
        )
    return {ids: float(bias) for ids, bias in pairs}


def _is_pair(item: object) -> bool:
    return isinstance(item, (list, tuple)) and len(item) == 2 and isinstance(item[0], list)


def _is_real(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _build_tables(sequence_bias: dict[tuple[int, ...], float], scores: Tensor) -> _Tables:
    vocab_size, device = scores.shape[-1], scores.device
    outside = [token_id for ids in sequence_bias for token_id in ids if token_id >= vocab_size]
    if outside:
        raise ValueError(
            f"ids of biased sequences must be below the vocabulary size {vocab_size}, got {shown(outside)}"
        )
    single = torch.zeros(vocab_size, device="cpu")
    # Grouped by powers of 2 of the length, so that padding at most doubles a group.
    by_length: dict[int, list[tuple[int, ...]]] = {}
    for ids, bias in sequence_bias.items():
        if len(ids) == 1:
            single[ids[0]] = bias
        else:
            by_length.setdefault((len(ids) - 1).bit_length(), []).append(ids)
    groups = [_build_group(some, [sequence_bias[ids] for ids in some]) for some in by_length.values()]
    return _Tables(single.to(device), [_Group(*(table.to(device) for table in group)) for group in groups])


def _build_group(sequences: list[tuple[int, ...]], biases: list[float]) -> _Group:
    lengths = torch.tensor(list(map(len, sequences)), device="cpu")
    flat = torch.tensor(list(itertools.chain.from_iterable(sequences)), device="cpu")
    ends, width = lengths.cumsum(0), int(lengths.max()) - 1
    columns = torch.arange(width, device="cpu") - width
    padded = columns < 1 - lengths[:, None]
    prefixes = flat[(ends[:, None] - 1 + columns).clamp(min=0)]
    return _Group(prefixes, padded, flat[ends - 1], torch.tensor(biases, dtype=torch.float32, device="cpu"))
