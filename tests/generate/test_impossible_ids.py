"""Ids below 0 or beyond the head, in every setting that takes ids.

They end nothing, ban nothing and do not count from the end. If a setting would force one, the error names it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import pygen
from pygen import processors
from tests.generate.models import VOCAB_SIZE, counting_table, encoder_decoder, hf_model
from tests.helpers.generation import generate_tokens

IDS = torch.randint(4, VOCAB_SIZE, (3, 4), generator=torch.Generator().manual_seed(1))
LAST = VOCAB_SIZE - 1
IMPOSSIBLE = [-1, -7, VOCAB_SIZE, 5000]
SEARCHES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sampling": {"do_sample": True, "seed": 3},
    "beams": {"num_beams": 3},
    "beam sampling": {"num_beams": 2, "do_sample": True, "seed": 3},
    "groups": {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5},
    "constraints": {"num_beams": 3, "force_words_ids": [[7]]},
    "prompt lookup": {"prompt_lookup_num_tokens": 2},
    "static": {"cache_implementation": "static"},
}


def generate(**settings: Any) -> Tensor:
    return generate_tokens(hf_model("llama"), IDS, **{"max_new_tokens": 6, **settings})


@pytest.mark.parametrize("eos", [-1, [5000]], ids=str)
@pytest.mark.parametrize("search", SEARCHES)
def test_an_end_that_cannot_come_is_none(search: str, eos: Any) -> None:
    """Several rows need no pad id then: `eos_token_id=-1` means "never stop"."""
    others = {"min_new_tokens": 3, "exponential_decay_length_penalty": (1, 1.5)}
    endless = generate(**SEARCHES[search], pad_token_id=0)
    assert torch.equal(generate(**SEARCHES[search], **others, eos_token_id=eos), endless)


@pytest.mark.parametrize("eos", [-1, 5000])
@pytest.mark.parametrize("num_beams", [1, 3])
def test_as_transformers(num_beams: int, eos: int) -> None:
    ours = generate(num_beams=num_beams, eos_token_id=eos)
    assert torch.equal(ours, hf_model("llama").generate(IDS, max_new_tokens=6, num_beams=num_beams, eos_token_id=eos))


@pytest.mark.parametrize(
    "settings",
    [
        {"suppress_tokens": IMPOSSIBLE},
        {"begin_suppress_tokens": IMPOSSIBLE},
        {"stopping_criteria": [pygen.EosTokenCriteria(IMPOSSIBLE)]},
        {"exponential_decay_length_penalty": (0, 0.5), "eos_token_id": IMPOSSIBLE},
        {"min_length": 9, "eos_token_id": IMPOSSIBLE},
        {"on_invalid": "eos", "eos_token_id": [*IMPOSSIBLE, 3]},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_ends_and_bans_ignore_impossible_ids(settings: dict[str, Any]) -> None:
    assert torch.equal(generate(pad_token_id=0, **settings), generate(pad_token_id=0))


def test_of_several_ids_those_that_exist_act() -> None:
    """They act even between ids that do not exist."""
    mixed = [-1, 9, 5000]
    allowed = generate(prefix_allowed_tokens_fn=lambda row, ids: mixed, pad_token_id=0)
    assert set(allowed[:, 4:].flatten().tolist()) == {9}
    ended = generate_tokens(counting_table(), torch.tensor([[7], [1]]), eos_token_id=mixed, max_new_tokens=4)
    assert ended.tolist() == [[7, 8, 9, 9, 9], [1, 2, 3, 4, 5]]


def test_rows_that_stop_without_a_pad_that_exists_go_on() -> None:
    """Other criteria work with "never stop" as they do without any end-of-sequence id."""

    def stops(ids: Tensor, scores: Any) -> Tensor:
        return ids[:, -1] % 4 == 0

    prompts = torch.tensor([[1], [3]])
    arguments: dict[str, Any] = {"max_new_tokens": 8, "stopping_criteria": [stops]}
    without = generate_tokens(counting_table(), prompts, **arguments)
    assert without.tolist() == [[1, 2, 3, 4], [3, 4, 5, 6]]
    assert torch.equal(generate_tokens(counting_table(), prompts, eos_token_id=-1, **arguments), without)
    padded = generate_tokens(counting_table(), prompts, eos_token_id=-1, pad_token_id=0, **arguments)
    assert padded.tolist() == [[1, 2, 3, 4], [3, 4, 0, 0]]
    beams = generate_tokens(counting_table(), prompts, eos_token_id=-1, num_beams=2, **arguments)
    assert beams.shape[0] == 2 and int(beams.min()) >= -1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"forced_bos_token_id": -1}, "`forced_bos_token_id` must be an id >= 0, got -1"),
        ({"forced_eos_token_id": -1}, "`forced_eos_token_id` must hold ids >= 0, got -1"),
        ({"forced_bos_token_id": 5000}, "`forced_bos_token_id` must hold ids below the vocabulary size 101"),
        ({"forced_eos_token_id": [9, 5000]}, "`forced_eos_token_id` must hold ids below the vocabulary size 101"),
        ({"prefix_allowed_tokens_fn": lambda row, ids: [-1]}, r"must allow some token in \[0, 101\), got \[-1\]"),
        ({"prefix_allowed_tokens_fn": lambda row, ids: [101]}, r"must allow some token in \[0, 101\), got \[101\]"),
        ({"bad_words_ids": [[-1]]}, "`bad_words_ids` must be .* ids >= 0"),
        ({"bad_words_ids": [[5000]]}, "`bad_words_ids` must hold ids below the vocabulary size 101, got 5000"),
        ({"sequence_bias": {(-1,): 9.0}}, "`sequence_bias` must be .* ids >= 0"),
        ({"sequence_bias": {(5000,): 9.0}}, "`sequence_bias` must hold ids below the vocabulary size 101, got 5000"),
        ({"force_words_ids": [[-1]], "num_beams": 2}, r"`force_words_ids\[0\]`: .* ints >= 0"),
        ({"force_words_ids": [[5000]], "num_beams": 2}, r"`constraints` must ask for ids in \[0, 101\), got 5000"),
        ({"on_invalid": "eos", "eos_token_id": -1}, "`on_invalid`='eos' needs `eos_token_id` >= 0, got -1"),
        ({"on_invalid": "eos", "eos_token_id": 101}, "needs an `eos_token_id` below the vocabulary size 101"),
    ],
    ids=range(14),
)
def test_forced_impossible_ids_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pygen.generate(hf_model("llama"), IDS[:, :1], max_new_tokens=3, **{"pad_token_id": 0, **settings})


def test_a_pad_that_the_model_cannot_read_is_refused() -> None:
    with pytest.raises(
        ValueError, match="`pad_token_id` must be one of the 101 ids that the model embeds, .* got 5000"
    ):
        generate(eos_token_id=3, pad_token_id=5000)
    assert generate(eos_token_id=None, pad_token_id=5000).shape == (3, 10)


def test_starts_are_refused_before_an_embedding_is_asked() -> None:
    with pytest.raises(ValueError, match="`bos_token_id` must be an id >= 0 where no `input_ids` are given, got -1"):
        pygen.generate(hf_model("llama"), bos_token_id=-1, max_new_tokens=2)
    with pytest.raises(ValueError, match="`decoder_start_token_id` must be an id >= 0, .* got -1"):
        pygen.generate(encoder_decoder("t5"), IDS, decoder_start_token_id=-1, max_new_tokens=2)


SCORES = torch.zeros(2, 6)
TEXT = torch.tensor([[1, 2], [3, 4]])


@pytest.mark.parametrize(
    "processor",
    [
        processors.SuppressTokensLogitsProcessor([-1, 6]),
        processors.SuppressTokensAtBeginLogitsProcessor([-1, 6], 2),
        processors.MinLengthLogitsProcessor(9, [-1, 6]),
        processors.MinNewTokensLengthLogitsProcessor(0, 9, [-1, 6]),
        processors.ExponentialDecayLengthPenalty((0, 1.5), [6, 7], 1),
        processors.RepetitionPenaltyLogitsProcessor(1.5),
        processors.NoRepeatNGramLogitsProcessor(1),
        processors.EncoderNoRepeatNGramLogitsProcessor(1, torch.tensor([[-1, 6]])),
        processors.EncoderRepetitionPenaltyLogitsProcessor(1.5, torch.tensor([[-1, 6]])),
    ],
    ids=lambda processor: type(processor).__name__,
)
def test_processors_leave_scores_alone(processor: Callable[[Tensor, Tensor], Tensor]) -> None:
    text = torch.full_like(TEXT, 6)
    assert torch.equal(processor(text, SCORES), SCORES)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: processors.ForcedBOSTokenLogitsProcessor(-1), "`bos_token_id` must be"),
        (lambda: processors.ForcedBOSTokenLogitsProcessor(6)(TEXT[:, :1], SCORES), "`bos_token_id` must hold ids"),
        (lambda: processors.ForcedEOSTokenLogitsProcessor(3, [6, 7])(TEXT, SCORES), "`eos_token_id` must hold ids"),
        (lambda: processors.AlternatingCodebooksLogitsProcessor(0, -2, 3), "`semantic_vocab_size` must be"),
    ],
)
def test_processors_that_force_refuse(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_scores_of_pads_beyond_the_head_are_none() -> None:
    sequences = torch.tensor([[1, 2, 3], [1, 9, -1]])
    steps = (torch.arange(10.0).view(2, 5), torch.arange(10.0, 20).view(2, 5))
    assert pygen.compute_transition_scores(sequences, steps).tolist() == [[2, 13], [0, 0]]
    criterion = pygen.ConfidenceCriteria(0.9)
    assert criterion(sequences, (torch.zeros(2, 5),)).tolist() == [True, False]
