"""Bugs of 5.6.1 that pygen does not copy, one test each. (test_names.py covers arguments.)"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from transformers.generation import logits_process as hf

from pygen import processors
from tests.helpers.releases import since

inf = math.inf
IDS = torch.zeros(4, 3, dtype=torch.int64)


def test_the_encoder_penalty_reaches_every_row() -> None:
    scores = torch.ones(4, 5)
    encoder_ids: Any = torch.tensor([[1, 2], [3, 3]])
    expected = torch.tensor([[1, 2, 2, 1, 1], [1, 2, 2, 1, 1], [1, 1, 1, 2, 1], [1, 1, 1, 2, 1.0]])
    assert torch.equal(processors.EncoderRepetitionPenaltyLogitsProcessor(2.0, encoder_ids)(IDS, scores), expected)
    theirs = hf.EncoderRepetitionPenaltyLogitsProcessor(2.0, encoder_ids)(IDS, scores)
    assert torch.equal(theirs, expected) == since("5.19")


@pytest.mark.parametrize("rows", [1, 3, 5])
@pytest.mark.parametrize("name", ["EncoderRepetitionPenaltyLogitsProcessor", "EncoderNoRepeatNGramLogitsProcessor"])
def test_rows_that_are_no_multiple_of_the_batch(name: str, rows: int) -> None:
    processor = getattr(processors, name)(2, torch.tensor([[1, 2], [3, 3]]))
    with pytest.raises(
        ValueError, match=f"`encoder_input_ids` must have a number of rows that divides .* {rows}, got 2"
    ):
        processor(torch.zeros(rows, 3, dtype=torch.int64), torch.ones(rows, 5))


@pytest.mark.parametrize("hidden", [-1, 5, 1000])
def test_ids_outside_the_vocabulary_are_not_penalised(hidden: int) -> None:
    scores, ids = torch.ones(1, 5), torch.tensor([[hidden, 2]])
    for processor in (
        processors.RepetitionPenaltyLogitsProcessor(2.0),
        processors.EncoderRepetitionPenaltyLogitsProcessor(0.5, ids),
    ):
        assert processor(ids, scores).tolist() == [[1, 1, 0.5, 1, 1]]
    if not since("5.18"):
        with pytest.raises((IndexError, RuntimeError)):
            hf.RepetitionPenaltyLogitsProcessor(2.0)(ids, scores)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("factor", [1.5, 2, -2.0])
def test_the_decay_neither_overflows_nor_makes_nan(factor: float, dtype: torch.dtype) -> None:
    scores = torch.tensor([[-inf, 0.0, 3.0, -3.0, inf]], dtype=dtype)
    processor = processors.ExponentialDecayLengthPenalty((0, factor), [0, 1, 2, 3, 4], 0)
    result = processor(torch.zeros(1, 5001, dtype=torch.int64), scores)
    limit = torch.finfo(dtype).max / 64 if factor > 0 else -inf
    expected = torch.tensor([[-inf, 0, limit, limit, inf]], dtype=dtype)
    torch.testing.assert_close(result, expected)
    with pytest.raises(OverflowError):
        hf.ExponentialDecayLengthPenalty((0, factor), 0, 0)(torch.zeros(1, 5001, dtype=torch.int64), scores)
    short = torch.zeros(1, 3, dtype=torch.int64)
    assert hf.ExponentialDecayLengthPenalty((0, 1.5), 0, 0)(short, scores)[0, 0].isnan() != since("5.19")


def test_the_list_form_of_biases_takes_token_0() -> None:
    biased = processors.SequenceBiasLogitsProcessor([[[0], 2.0], [[3, 0], 1.0]])(IDS + 3, torch.zeros(4, 5))
    assert biased.tolist() == [[3, 0, 0, 0, 0]] * 4


def test_a_list_in_a_list_is_called() -> None:
    inner = processors.LogitsProcessorList([processors.TemperatureLogitsWarper(2.0)])
    scores = processors.LogitsProcessorList([inner])(IDS, torch.ones(4, 5))
    assert scores[0, 0] == 0.5


def test_rows_beside_the_beams_are_constrained() -> None:
    """transformers allows no token in the rows after the last full group."""
    processor = processors.PrefixConstrainedLogitsProcessor(lambda batch_id, ids: [batch_id], num_beams=3)
    assert processor(IDS, torch.zeros(4, 3)).argmax(1).tolist() == [0, 0, 0, 1]


@pytest.mark.parametrize("text", [[4, 6], [9, 4, 6]], ids=["whole", "longer"])
def test_a_sequence_may_be_the_whole_text_and_a_token(text: list[int]) -> None:
    """A sequence with two more tokens than the text does not match, whatever precedes the text in memory."""
    ids, scores = torch.tensor([text]), torch.zeros(1, 10)
    biases: Any = {(4, 6, 5): -9.0, (0, 4, 6, 7): 3.0, (1, 2, 3, 4, 5, 0, 0, 4, 6, 8): 2.0}
    expected = torch.tensor([[0, 0, 0, 0, 0, -9.0, 0, 0, 0, 0]])
    assert torch.equal(processors.SequenceBiasLogitsProcessor(biases)(ids, scores), expected)
    banned = processors.NoBadWordsLogitsProcessor([[4, 6, 5], [0, 4, 6, 7]])(ids, scores)
    assert (banned == -inf).nonzero().tolist() == [[0, 5]]
    theirs = hf.SequenceBiasLogitsProcessor(biases)(ids, scores)
    assert torch.equal(theirs, expected) == (len(text) == 3 or since("5.18"))


def test_every_prompt_may_ignore_another_number_of_columns() -> None:
    ids, scores = torch.tensor([[1, 2, 3], [4, 2, 1]]).repeat_interleave(2, 0), torch.ones(4, 6)
    penalized = processors.RepetitionPenaltyLogitsProcessor(2.0, torch.tensor([1, 2]))(ids, scores) < 1
    assert penalized.int().tolist() == [[0, 0, 1, 1, 0, 0]] * 2 + [[0, 1, 0, 0, 0, 0]] * 2
    for wrong in (torch.tensor(1), torch.tensor([1.5])):
        with pytest.raises(ValueError, match="`prompt_ignore_length` must be an integer or hold one per prompt"):
            processors.RepetitionPenaltyLogitsProcessor(2.0, wrong)
