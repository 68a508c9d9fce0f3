"""Texts that reach the last position embedding of a model."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch

import pygen
from tests.helpers.generation import generate_tokens
from tests.shadow.tiny import built

IDS = torch.full((1, 10), 5)
SETTINGS: dict[str, Any] = {"do_sample": False, "pad_token_id": 0, "eos_token_id": None}
# Config fields for 16 usable positions. Some embeddings have one more entry, which no text uses.
LEARNED = {
    "GPT2LMHeadModel": {"max_position_embeddings": 16},
    "OPTForCausalLM": {"max_position_embeddings": 16},
    "RobertaForCausalLM": {"max_position_embeddings": 17, "is_decoder": True},
    "BartForCausalLM": {"max_position_embeddings": 16},
    "WhisperForCausalLM": {"max_target_positions": 16},
}


@pytest.mark.parametrize("name", LEARNED)
def test_generation_ends_with_the_positions(name: str) -> None:
    """The model never reads the last of 17 tokens, so that token needs no position."""
    model = built(name, **LEARNED[name])
    message = f"{name} has no positions for 20 new tokens: generating up to 7"
    with pytest.warns(UserWarning, match=message):
        sequences = generate_tokens(model, IDS, max_new_tokens=20, **SETTINGS)
    assert sequences.shape == (1, 17)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(sequences, generate_tokens(model, IDS, max_new_tokens=7, **SETTINGS))
    message = "`input_ids` must have at most the 16 positions of .*, got 17"
    with pytest.raises(ValueError, match=message):
        pygen.generate(model, torch.full((1, 17), 5), max_new_tokens=1, **SETTINGS)


def test_an_encoder_has_separate_positions() -> None:
    model = built("BartForConditionalGeneration", max_position_embeddings=16, decoder_start_token_id=1)
    with pytest.warns(UserWarning, match="no positions for 20 new tokens: generating up to 16"):
        pygen.generate(model, torch.full((1, 16), 5), max_new_tokens=20, **SETTINGS)
    with pytest.raises(ValueError, match="`input_ids` must have at most the 16 positions of Bart.*, got 17"):
        pygen.generate(model, torch.full((1, 17), 5), max_new_tokens=1, **SETTINGS)


def test_padding_takes_no_position_where_the_model_is_given_positions() -> None:
    model = built("GPT2LMHeadModel", max_position_embeddings=16)
    padded = torch.cat([torch.zeros(1, 7, dtype=torch.int64), IDS], dim=1)
    sequences = generate_tokens(model, padded, attention_mask=padded != 0, max_new_tokens=7, **SETTINGS)
    assert torch.equal(sequences[:, 7:], generate_tokens(model, IDS, max_new_tokens=7, **SETTINGS))


def test_drafts_end_with_the_positions_of_the_assistant() -> None:
    model = built("GPT2LMHeadModel")
    assistant = built("GPT2LMHeadModel", max_position_embeddings=16)
    sequences = generate_tokens(model, IDS, assistant_model=assistant, max_new_tokens=20, **SETTINGS)
    assert torch.equal(sequences, generate_tokens(model, IDS, max_new_tokens=20, **SETTINGS))


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("LlamaForCausalLM", {}),
        ("FSMTForConditionalGeneration", {"langs": ["a", "b"], "src_vocab_size": 64, "tgt_vocab_size": 64}),
    ],
)
def test_positions_that_are_computed_have_no_end(name: str, fields: dict[str, Any]) -> None:
    model = built(name, max_position_embeddings=16, **fields)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sequences = generate_tokens(model, torch.full((1, 17), 5), max_new_tokens=20, **SETTINGS)
    assert sequences.shape[1] >= 21
