"""Encoder-decoder models against transformers: the encoder, the decoder's start, and every field of the output."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any, cast

import pytest
import torch
import transformers
from torch import Tensor
from transformers import EncoderDecoderCache, T5ForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutput

from pygen.generate import generate
from pygen.models.versions import CACHE_NAMES
from pygen.outputs import GenerateEncoderDecoderOutput
from tests.generate.against_transformers import EVERYTHING, assert_both_same
from tests.generate.models import ENCODER_DECODERS, encoder_decoder
from tests.helpers.generation import generate_output, generate_tokens

IDS = torch.tensor([[7, 8, 9, 10, 11], [31, 32, 33, 0, 0], [50, 40, 30, 20, 0]])
FEATURES = torch.randn(3, 8, 40, generator=torch.Generator().manual_seed(0))
START: dict[str, Any] = {"decoder_start_token_id": 1, "max_new_tokens": 7}


def main_input(family: str) -> Tensor:
    return FEATURES if family == "whisper" else IDS


SETTINGS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "greedy, penalties": {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2},
    "sampling": {"do_sample": True, "temperature": 0.8, "top_p": 0.9},
    "copies": {"do_sample": True, "num_return_sequences": 3},
    "copies without a cache": {"do_sample": True, "num_return_sequences": 2, "use_cache": False},
    "without a cache": {"use_cache": False},
    "rows end": {"do_sample": True, "eos_token_id": list(range(30, 60)), "pad_token_id": 0},
    "a start per row": {"decoder_start_token_id": [1, 2, 3]},
    "start from bos": {"decoder_start_token_id": None, "bos_token_id": 4},
    "total length": {"max_new_tokens": None, "max_length": 6, "min_length": 4, "eos_token_id": list(range(30, 60))},
    "decoder prompt": {"decoder_input_ids": torch.tensor([[1, 5], [1, 6], [1, 7]])},
    "decoder prompt, start missing": {"decoder_input_ids": torch.tensor([[4, 5], [4, 6], [4, 7]])},
    "decoder prompt, start in one row": {"decoder_input_ids": torch.tensor([[1, 5], [4, 6], [4, 7]])},
    "decoder prompt, copies": {
        "decoder_input_ids": torch.tensor([[4, 5], [4, 6], [4, 7]]),
        "do_sample": True,
        "num_return_sequences": 2,
    },
}


@pytest.mark.parametrize("family", ENCODER_DECODERS)
@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_as_transformers(family: str, name: str) -> None:
    mask: dict[str, Any] = {"attention_mask": (IDS != 0).long()} if family != "whisper" else {}
    kept: dict[str, Any] = {"return_dict_in_generate": True, "output_scores": True, "output_logits": True}
    assert_both_same(encoder_decoder(family), main_input(family), **{**START, **SETTINGS[name]}, **mask, **kept)


@pytest.mark.parametrize("family", ENCODER_DECODERS)
@pytest.mark.parametrize("copies", [1, 2])
def test_every_field(family: str, copies: int, eager: None) -> None:
    output = assert_both_same(
        encoder_decoder(family),
        main_input(family),
        do_sample=True,
        num_return_sequences=copies,
        **START,
        **EVERYTHING,
    )
    rows, read = 3 * copies, 20 if family == "whisper" else 5
    assert isinstance(output, GenerateEncoderDecoderOutput)
    states: Any = output
    if family == "t5" and transformers.__version__ != "5.6.1":
        return  # T5 of later releases returns no attentions
    assert [t.shape for t in states.encoder_attentions] == [(3, 4, read, read)] * 2
    assert [t.shape for t in states.encoder_hidden_states] == [(3, read, 32)] * 3
    assert [[t.shape for t in step] for step in states.cross_attentions] == [[(rows, 4, 1, read)] * 2] * 7
    assert [step[0].shape for step in states.decoder_attentions] == [(rows, 4, 1, 1 + n) for n in range(7)]
    assert [[t.shape for t in step] for step in states.decoder_hidden_states] == [[(rows, 1, 32)] * 3] * 7
    assert isinstance(output.past_key_values, EncoderDecoderCache)
    assert output.finish_reason == ["length"] * rows


def test_logprobs() -> None:
    output = generate_output(
        encoder_decoder("t5"), IDS, return_dict_in_generate=True, output_logprobs=True, top_logprobs=2, **START
    )
    assert output.logprobs.shape == (3, 7) and (output.logprobs < 0).all()
    assert output.top_logprobs.token_ids[..., 0].equal(output.sequences[:, 1:])


@pytest.fixture
def eager() -> Iterator[None]:
    for family in ENCODER_DECODERS:
        encoder_decoder(family).set_attn_implementation("eager")
    yield
    for family in ENCODER_DECODERS:
        encoder_decoder(family).set_attn_implementation("sdpa" if family != "t5" else "eager")


def calls_of(module: torch.nn.Module) -> tuple[list[dict[str, Any]], Any]:
    calls: list[dict[str, Any]] = []
    handle = module.register_forward_hook(lambda m, args, kwargs, output: calls.append(kwargs), with_kwargs=True)
    return calls, handle


def test_the_encoder_runs_once_and_before_copies_are_made() -> None:
    model = encoder_decoder("t5")
    calls, handle = calls_of(model.get_encoder())
    generate(model, IDS, attention_mask=(IDS != 0).long(), do_sample=True, num_return_sequences=4, **START)
    handle.remove()
    assert [call["input_ids"].shape for call in calls] == [(3, 5)]
    assert torch.equal(calls[0]["attention_mask"], (IDS != 0).long())
    assert not calls[0].keys() & {"use_cache", *CACHE_NAMES, "decoder_input_ids", "decoder_attention_mask"}


@pytest.mark.parametrize("family", ["t5", "bart"])
@pytest.mark.parametrize("use_cache", [True, False])
def test_the_decoder_prompt_is_read_once_per_row_of_the_batch(family: str, use_cache: bool) -> None:
    model = encoder_decoder(family)
    calls, handle = calls_of(model.get_decoder())
    prompt = torch.tensor([[1, 5], [1, 6], [1, 7]])
    settings: dict[str, Any] = {"do_sample": True, "num_return_sequences": 4, "use_cache": use_cache, **START}
    generate(model, IDS, decoder_input_ids=prompt, **{**settings, "max_new_tokens": 3})
    handle.remove()
    lengths = [2, 1, 1] if use_cache else [2, 3, 4]
    assert [call["input_ids"].shape for call in calls] == list(zip([3, 12, 12], lengths, strict=True))


def test_padding_of_the_decoder_prompt() -> None:
    padded = torch.tensor([[1, 5, 6], [0, 1, 6], [1, 5, 7]])
    mask = (padded != 0).long()
    for family in ("t5", "bart"):
        for ids, starts in ((padded, 1), (padded, 9)):  # with 9 the call prepends the start token
            assert_both_same(
                encoder_decoder(family),
                IDS,
                decoder_input_ids=ids,
                decoder_attention_mask=mask,
                **{**START, "decoder_start_token_id": starts},
            )


def test_penalties_do_not_see_padding_of_the_decoder_prompt() -> None:
    padded = torch.tensor([[1, 5, 6], [0, 1, 6], [1, 5, 7]])
    output = generate_output(
        encoder_decoder("t5"),
        IDS,
        decoder_input_ids=padded,
        decoder_attention_mask=(padded != 0).long(),
        repetition_penalty=1e6,
        return_dict_in_generate=True,
        output_scores=True,
        output_logits=True,
        **START,
    )
    touched = output.scores[0] != output.logits[0]
    assert [row.nonzero()[:, 0].tolist() for row in touched] == [[1, 5, 6], [1, 6], [1, 5, 7]]


@pytest.mark.parametrize("family", ENCODER_DECODERS)
def test_given_encoder_outputs(family: str) -> None:
    model = encoder_decoder(family)
    with torch.no_grad():
        encoded = model.get_encoder()(main_input(family), return_dict=True)
    before = copy.deepcopy(dict(encoded))
    calls, handle = calls_of(model.get_encoder())
    settings: dict[str, Any] = {"do_sample": True, "num_return_sequences": 2, **START}
    torch.manual_seed(0)
    drawn = generate_tokens(model, encoder_outputs=encoded, **settings)
    handle.remove()
    torch.manual_seed(0)
    assert torch.equal(drawn, generate_tokens(model, main_input(family), **settings))
    assert calls == []
    assert encoded.keys() == before.keys()
    assert torch.equal(encoded.last_hidden_state, before["last_hidden_state"])


def test_embeddings_for_the_encoder() -> None:
    model = encoder_decoder("bart")
    embeds = model.get_input_embeddings()(IDS)
    assert_both_same(model, inputs_embeds=embeds, attention_mask=(IDS != 0).long(), **START)
    assert torch.equal(generate_tokens(model, inputs_embeds=embeds, **START), generate_tokens(model, IDS, **START))
    # The encoder's ids do not count towards the decoder's length, and do not affect its padding.
    lengths: dict[str, Any] = {"max_new_tokens": None, "max_length": 6, "min_length": 4, "eos_token_id": [*range(90)]}
    assert_both_same(model, inputs_embeds=embeds, **{**START, **lengths, "pad_token_id": 0})
    prompt: dict[str, Any] = {"decoder_input_ids": torch.tensor([[1, 9, 9], [1, 5, 6], [1, 1, 7]])}
    mask: dict[str, Any] = {"decoder_attention_mask": torch.tensor([[1, 0, 1], [1, 1, 1], [1, 1, 1]])}
    visible = [
        generate_tokens(model, repetition_penalty=9.0, **reads, **prompt, **mask, **START)
        for reads in ({"inputs_embeds": embeds}, {"input_ids": IDS})
    ]
    assert torch.equal(*visible)


def test_features_by_name_and_ids_for_the_decoder() -> None:
    model = encoder_decoder("whisper")
    ids = torch.tensor([[3, 4, 5], [3, 4, 6], [3, 4, 7]])
    by_name = assert_both_same(model, input_features=FEATURES, decoder_input_ids=ids, **START)
    assert by_name.shape == (3, 10) and torch.equal(by_name[:, :3], ids)
    assert torch.equal(assert_both_same(model, FEATURES, input_ids=ids, **START), by_name)


def test_continuing_from_a_cache() -> None:
    model = encoder_decoder("bart")
    encoded = model.get_encoder()(IDS, return_dict=True)
    at_once = generate_tokens(model, encoder_outputs=encoded, **{**START, "max_new_tokens": 9})
    first = generate_output(
        model, encoder_outputs=encoded, return_dict_in_generate=True, **{**START, "max_new_tokens": 4}
    )
    again: dict[str, Any] = {"encoder_outputs": encoded, "past_key_values": first.past_key_values}
    ids = first.sequences
    resumed = generate_tokens(
        model,
        decoder_input_ids=ids,
        decoder_attention_mask=torch.ones_like(ids),
        **{**START, "max_new_tokens": 5},
        **again,
    )
    assert torch.equal(resumed, at_once)


def test_nothing_of_the_caller_is_changed() -> None:
    model = encoder_decoder("t5")
    attributes = set(vars(model))
    ids, decoder_ids = IDS.clone(), torch.tensor([[4, 5], [4, 6], [4, 7]])
    mask, decoder_mask = (IDS != 0).long(), torch.ones(3, 2, dtype=torch.long)
    before = [t.clone() for t in (ids, decoder_ids, mask, decoder_mask)]
    generate(
        model,
        ids,
        attention_mask=mask,
        decoder_input_ids=decoder_ids,
        decoder_attention_mask=decoder_mask,
        do_sample=True,
        num_return_sequences=2,
        **START,
    )
    assert all(torch.equal(x, y) for x, y in zip(before, (ids, decoder_ids, mask, decoder_mask), strict=True))
    assert set(vars(model)) == attributes


OUTPUTS = BaseModelOutput(last_hidden_state=cast(Any, torch.zeros(3, 5, 32)))
WRONG: list[tuple[str, dict[str, Any], type[Exception], str]] = [
    ("t5", {"inputs": IDS, "decoder_start_token_id": None}, ValueError, "`decoder_start_token_id` or `bos_token_id`"),
    ("t5", {"inputs": IDS, "decoder_start_token_id": [1, 2]}, ValueError, r"one id or one per prompt \(3\), got 2"),
    ("t5", {"inputs": IDS, "decoder_input_ids": IDS[:2]}, ValueError, r"one row per input \(3\), got shape \(2, 5\)"),
    ("t5", {"inputs": IDS, "decoder_input_ids": [[1]]}, TypeError, "`decoder_input_ids` must be a tensor, got list"),
    ("t5", {"inputs": IDS, "decoder_input_ids": IDS.float()}, TypeError, "`decoder_input_ids` must hold integers"),
    ("t5", {"inputs": IDS, "decoder_attention_mask": IDS}, ValueError, r"must have the shape .*\(3, 1\), got \(3, 5\)"),
    (
        "t5",
        {"inputs": IDS, "attention_mask": IDS[:, :2]},
        ValueError,
        r"of `input_ids` \(3, 5\), got \(3, 2\)",
    ),
    ("t5", {"inputs": IDS, "input_ids": IDS}, ValueError, "`inputs` and `input_ids` are the same argument"),
    ("t5", {"inputs": IDS, "inputs_embeds": torch.ones(3, 5, 32)}, ValueError, "exclude each other"),
    ("t5", {"encoder_outputs": (torch.ones(3, 5, 32),)}, TypeError, "`encoder_outputs` must be .* got tuple"),
    (
        "t5",
        {"inputs": IDS, "decoder_inputs": IDS},
        ValueError,
        "does not use these arguments: `decoder_inputs`",
    ),
    ("t5", {"inputs": None}, ValueError, "`bos_token_id` must be set where no `input_ids` are given"),
    ("t5", {"inputs": IDS, "max_length": 1}, ValueError, r"larger than the length of `decoder_input_ids` \(1\), got 1"),
    ("whisper", {"inputs": None}, ValueError, "`input_features` must be given: it is what WhisperForConditional"),
    ("whisper", {"inputs": FEATURES, "input_features": FEATURES}, ValueError, "`inputs` and `input_features` are the"),
    ("whisper", {"inputs": FEATURES.tolist()}, TypeError, "`input_features` must be a tensor, got list"),
    ("whisper", {"inputs": FEATURES[:0]}, ValueError, r"`input_features` must have shape .* got \(0, 8, 40\)"),
    ("whisper", {"inputs": FEATURES.to("meta")}, ValueError, "`input_features` must be on the model's device"),
    ("t5", {"encoder_outputs": OUTPUTS, "cache_implementation": "quantized"}, ValueError, "is not supported by T5For"),
]


@pytest.mark.parametrize(
    ("family", "arguments", "error", "message"), WRONG, ids=[f"{n}-{list(w[1])[-1]}" for n, w in enumerate(WRONG)]
)
def test_wrong_arguments(family: str, arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    model = encoder_decoder(family)
    calls, handle = calls_of(model.get_encoder())
    settings = {**START, **({"max_new_tokens": None} if "max_length" in arguments else {}), **arguments}
    try:
        with pytest.raises(error, match=message):
            generate(model, **settings)
    finally:
        handle.remove()
    assert calls == []


def test_models_with_a_generate_of_their_own_are_refused() -> None:
    class Own(T5ForConditionalGeneration):
        def generate(self, *args: Any, **kwargs: Any) -> Any:
            raise AssertionError

    with pytest.raises(NotImplementedError, match="`model`=Own: its own `generate` replaces transformers'"):
        generate(Own(encoder_decoder("t5").config), IDS, **START)
