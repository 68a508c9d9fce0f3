"""Token healing against transformers, with small tokenizers built here."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from pygen.config.config import GenerationConfig
from pygen.generate import generate
from tests.generate.against_transformers import assert_both_same
from tests.generate.models import TableModel, encoder_decoder
from tests.helpers.generation import generate_output, generate_tokens

TEXT = "the theory of the thermal theatre there: http https https://the.then/these those thus http://www.that"


def made(backend: Tokenizer, alphabet: list[str]) -> Any:
    special = ["<pad>", "<s>"]
    trainer = trainers.BpeTrainer(
        vocab_size=340, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator([TEXT] * 4, trainer)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", bos_token="<s>", padding_side="left"
    )


@functools.cache
def tokenizer(adds_bos: bool = False) -> Any:
    """Returns a tokenizer whose tokens are their text. transformers looks for extensions among token names."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_next")
    backend.decoder = decoders.Fuse()
    if adds_bos:
        backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return made(backend, sorted(set(TEXT)))


@functools.cache
def byte_level_tokenizer() -> Any:
    """Returns a tokenizer that writes spaces as another letter. Without a space token transformers misses it."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return made(backend, pre_tokenizers.ByteLevel.alphabet())


@functools.cache
def model() -> Any:
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        n_embd=32,
        n_layer=2,
        n_head=4,
        vocab_size=340,
        initializer_range=0.2,
        bos_token_id=None,
        eos_token_id=None,
    )
    return transformers.GPT2LMHeadModel(config).eval()


PROMPTS: dict[str, list[str]] = {
    "inside a word": ["the th"],
    "an address": ["http"],
    "nothing extends it": ["the https://the.then"],
    "a batch": ["the th", "http", "there: h"],
    "one token": ["the"],
    "an empty one": ["", "the th"],
}


@pytest.mark.parametrize("name", PROMPTS)
@pytest.mark.parametrize("adds_bos", [False, True])
@pytest.mark.parametrize("settings", [{}, {"do_sample": True, "num_return_sequences": 2}], ids=["greedy", "copies"])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_as_transformers(name: str, adds_bos: bool, settings: dict[str, Any]) -> None:
    words = tokenizer(adds_bos)
    inputs = words(PROMPTS[name], return_tensors="pt", padding=True)
    call = {"token_healing": True, "tokenizer": words, "pad_token_id": 0, "max_new_tokens": 4, **settings}
    assert_both_same(model(), inputs.input_ids, attention_mask=inputs.attention_mask, **call)


def test_bos_is_shown_as_pad() -> None:
    words = tokenizer(True)
    ids = words(["the th", "the the https"], return_tensors="pt", padding=True).input_ids
    healed = generate_tokens(model(), ids, token_healing=True, tokenizer=words, max_new_tokens=1, pad_token_id=0)
    assert (ids == 1).any() and not (healed == 1).any()


@pytest.mark.parametrize("make", [tokenizer, byte_level_tokenizer])
def test_a_healed_prompt_continues_the_text(make: Any) -> None:
    """The model prefers the token that the text was cut from, if it is allowed."""
    words = make()
    ids = words(["the th", "there: th"], return_tensors="pt", padding=True).input_ids
    table = TableModel(torch.zeros(340, 340))
    table.table[:, words("the theory").input_ids[-1]] = 5.0
    table.table[:, 2] = 9.0  # the best token, although it extends nothing
    healed = generate_tokens(table, ids, token_healing=True, tokenizer=words, pad_token_id=0, max_new_tokens=1)
    assert words.batch_decode(healed[:, :-1], skip_special_tokens=True) == ["the theory", "there: theory"]
    assert healed[:, -1].tolist() == [2, 2]


def test_a_model_may_ask_for_it() -> None:
    ids = tokenizer()(["the th"], return_tensors="pt").input_ids
    asking = TableModel(torch.zeros(340, 340))
    asked: dict[str, Any] = {"token_healing": True, "return_dict_in_generate": True}
    asking.generation_config = GenerationConfig(**asked, max_new_tokens=2)
    by_hand = generate_output(TableModel(torch.zeros(340, 340)), ids, tokenizer=tokenizer(), max_new_tokens=2, **asked)
    assert torch.equal(generate_output(asking, ids, tokenizer=tokenizer()).sequences, by_hand.sequences)


def test_wrong_calls() -> None:
    ids = tokenizer()(["the th"], return_tensors="pt").input_ids
    heals: dict[str, Any] = {"token_healing": True, "max_new_tokens": 2}
    with pytest.raises(ValueError, match="`token_healing` needs the model's tokenizer"):
        generate(model(), ids, **heals)
    with pytest.raises(ValueError, match="`token_healing` needs a decoder-only model and `input_ids`"):
        generate(encoder_decoder("t5"), ids, decoder_start_token_id=1, tokenizer=tokenizer(), **heals)
    spaced = tokenizer()(["the th   "], return_tensors="pt").input_ids
    with pytest.raises(ValueError, match=r"`token_healing`: the tokenizer makes \(1, 2\) of .* \(1, \d\)"):
        generate(model(), spaced, tokenizer=tokenizer(), **heals)
