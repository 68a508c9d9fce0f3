"""Inputs of the processor tests: arguments of every class, rows of scores, and the tolerance rule."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tests.helpers.kept_sets import kept_bounds
from tests.helpers.transformers_oracle import stable_order

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
VOCAB_SIZES = (1, 7, 151)
inf, nan = math.inf, math.nan


class Warper(NamedTuple):
    """A filter: its class, its arguments, and the equivalent knob of the op."""

    name: str
    arguments: dict[str, Any]
    knob: str


def warpers() -> list[Warper]:
    """Returns a grid over values, filter values and minimum numbers of tokens to keep."""
    grid: dict[tuple[str, str, str], list[float]] = {
        ("TopKLogitsWarper", "top_k", "top_k"): [1, 3, 10, 1000],
        ("TopPLogitsWarper", "top_p", "top_p"): [0.0, 0.3, 0.8, 0.99],
        ("MinPLogitsWarper", "min_p", "min_p"): [0.0, 0.05, 0.5, 1.0],
        ("TypicalLogitsWarper", "mass", "typical_p"): [0.05, 0.5, 0.9],
        ("EpsilonLogitsWarper", "epsilon", "epsilon_cutoff"): [0.001, 0.05, 0.6],
        ("EtaLogitsWarper", "epsilon", "eta_cutoff"): [0.001, 0.05, 0.6],
    }
    found = [
        Warper(name, {parameter: value, "filter_value": filled, "min_tokens_to_keep": keep}, knob)
        for (name, parameter, knob), values in grid.items()
        for value, (filled, keep) in itertools.product(values, [(-inf, 1), (-inf, 3), (-1e4, 1), (-inf, 500)])
    ]
    return found + [
        Warper("TopHLogitsWarper", {"top_h": value, "filter_value": filled}, "top_h")
        for value, filled in itertools.product([0.2, 0.6, 0.95], [-inf, -1e4])
    ]


class Other(NamedTuple):
    """A processor that isn't a filter, and its arguments for a vocabulary of `vocab_size`."""

    name: str
    arguments: dict[str, Any]


PROMPT_LENGTH = 4


def others(vocab_size: int) -> list[Other]:
    """Returns every other class that works on any scores. `V` is the last id of the vocabulary."""
    last, middle = vocab_size - 1, vocab_size // 2
    encoder_ids = torch.randint(0, min(vocab_size, 6), (3, 12), generator=torch.Generator().manual_seed(5))
    ends: list[Any] = [0, [last, 0], torch.tensor([middle])]
    grid: dict[str, list[dict[str, Any]]] = {
        "TemperatureLogitsWarper": [{"temperature": t} for t in (0.3, 1.0, 7.5)],
        "RepetitionPenaltyLogitsProcessor": [
            {"penalty": p, "prompt_ignore_length": n} for p in (0.5, 1.0, 1.7) for n in (None, 0, 2, 99)
        ],
        "EncoderRepetitionPenaltyLogitsProcessor": [
            {"penalty": p, "encoder_input_ids": encoder_ids} for p in (0.5, 1.7)
        ],
        "NoRepeatNGramLogitsProcessor": [{"ngram_size": n} for n in (1, 2, 3, 20)],
        "EncoderNoRepeatNGramLogitsProcessor": [
            {"encoder_ngram_size": n, "encoder_input_ids": ids}
            for n in (1, 2, 3, 20)
            for ids in (encoder_ids, encoder_ids[:1], encoder_ids[0])
        ],
        "MinLengthLogitsProcessor": [
            {"min_length": n, "eos_token_id": e} for n in (0, PROMPT_LENGTH, 99) for e in ends
        ],
        "MinNewTokensLengthLogitsProcessor": [
            {"prompt_length_to_skip": PROMPT_LENGTH, "min_new_tokens": n, "eos_token_id": e}
            for n in (0, 2)
            for e in ends
        ],
        "SuppressTokensLogitsProcessor": [{"suppress_tokens": ids} for ids in ([], [0], [0, last], [last, 5000, -3])],
        "SuppressTokensAtBeginLogitsProcessor": [
            {"begin_suppress_tokens": [0, last], "begin_index": n} for n in (1, PROMPT_LENGTH)
        ],
        "ForcedBOSTokenLogitsProcessor": [{"bos_token_id": last}],
        "ForcedEOSTokenLogitsProcessor": [
            {"max_length": n, "eos_token_id": e} for n in (2, PROMPT_LENGTH + 1) for e in ends
        ],
        "SequenceBiasLogitsProcessor": [
            {
                "sequence_bias": {
                    (0,): 2.5,
                    (last,): -inf,
                    (1 % vocab_size, 0): -4.0,
                    (2 % vocab_size, 1 % vocab_size, 0): 1.5,
                }
            },
            {"sequence_bias": {(last, 0): 3.0, (middle, last, 0): -1.0}},
            {"sequence_bias": [[[last], 0.5], [[last, last, last, last, last], -inf]]},
        ],
        "NoBadWordsLogitsProcessor": [
            {"bad_words_ids": [[0], [1 % vocab_size, 0], [2 % vocab_size, 1 % vocab_size, last]], "eos_token_id": e}
            for e in (None, *ends)
        ],
        "PrefixConstrainedLogitsProcessor": [
            {"prefix_allowed_tokens_fn": lambda batch_id, ids: [batch_id % vocab_size, int(ids[-1])], "num_beams": n}
            for n in (1, 3)
        ],
        "InfNanRemoveLogitsProcessor": [{}],
        "LogitNormalization": [{}],
        "ExponentialDecayLengthPenalty": [
            {"exponential_decay_length_penalty": (start, factor), "eos_token_id": e, "input_ids_seq_length": 1}
            for start, factor in ((0, 1.1), (2, 1.2), (5, 0.7))
            for e in ends
        ],
        "AlternatingCodebooksLogitsProcessor": [
            {"input_start_len": n, "semantic_vocab_size": vocab_size // 3, "codebook_size": vocab_size // 3}
            for n in (0, 1)
        ],
    }
    return [Other(name, arguments) for name, table in grid.items() for arguments in table]


def rows_of(vocab_size: int, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """Yields (label, (3, vocab_size)): random rows and edge cases."""
    generator = torch.Generator().manual_seed(vocab_size)
    normal = torch.randn(3, vocab_size, generator=generator)
    middle = torch.tensor([vocab_size // 2])
    keeps_one = (torch.rand(3, vocab_size, generator=generator) < 0.2).index_fill(1, middle, True)
    kinds = {
        "normal": normal,
        "spread": normal * 6,
        "equal": torch.full((3, vocab_size), 1.5),
        "ties": (normal * 2).round() / 2,
        "masked": normal.where(keeps_one, -inf),
        "one left": torch.full((3, vocab_size), -inf).index_fill(1, middle, 0.25),
        "none left": torch.full((3, vocab_size), -inf),
        "NaN": normal.index_fill(1, middle, nan),
        "+inf": normal.index_fill(1, middle, inf),
    }
    for label, scores in kinds.items():
        yield label, scores.to(dtype)


def ids_of(vocab_size: int, length: int) -> Tensor:
    """Returns (3, length) ids with few distinct values, so that they repeat."""
    return torch.randint(0, min(vocab_size, 4), (3, length), generator=torch.Generator().manual_seed(length))


def assert_same(actual: Tensor, expected: Tensor, message: str = "") -> None:
    """Asserts equal infinities, NaN and dtype, and numbers within the rounding of float32 or a narrower dtype."""
    tolerance = max(torch.finfo(actual.dtype).eps * 2, 5e-7)
    torch.testing.assert_close(
        actual, expected, rtol=tolerance, atol=tolerance, equal_nan=True, msg=lambda text: f"{message}\n{text}"
    )


def check_filter(ours: Any, theirs: Any, warper: Warper, label: str, scores: Tensor) -> None:
    """Asserts that `ours` on `scores` equals `theirs`, up to the tokens that rounding may decide.

    transformers computes in the dtype of the scores. Half-precision softmax and sums are too inaccurate, so it gets
    such scores as float32. Invalid rows lose no token in pygen; transformers raises or, with top-k, ranks NaN.
    """
    with stable_order():
        expected = theirs(None, scores if scores.dtype.itemsize > 2 else scores.float())
    actual = ours(None, scores)
    assert actual.dtype == scores.dtype
    filled = warper.arguments["filter_value"]
    knobs = {warper.knob: next(iter(warper.arguments.values()))}
    knobs["min_tokens_to_keep"] = warper.arguments.get("min_tokens_to_keep", 1)
    for row, (after, wanted, before) in enumerate(zip(actual, expected.to(scores.dtype), scores, strict=True)):
        gone = before == -inf
        kept, wanted_kept = (after == before) & ~gone, (wanted == before) & ~gone
        assert bool((kept | gone | (after == filled)).all()), f"{label} row {row}: a kept score was changed"
        if torch.equal(kept, wanted_kept):
            continue
        always, possibly = kept_bounds(before.double().numpy(), knobs)
        for mask in (kept.numpy(), wanted_kept.numpy()):
            assert not (always & ~mask).any(), f"{label} row {row}: misses a token"
            assert not (mask & ~possibly).any(), f"{label} row {row}: keeps a token too many"
