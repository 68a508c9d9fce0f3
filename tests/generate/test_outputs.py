"""Outputs: fields, shapes, log-probabilities, and ways to access a field."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from torch.utils import _pytree as pytree
from transformers.generation import utils as generation_utils
from transformers.utils.generic import ModelOutput

from pygen import outputs
from pygen.outputs import GenerateDecoderOnlyOutput
from tests.generate.models import TableModel, cached_model, counting_table, encoder_decoder, hf_model
from tests.helpers.generation import generate_output, generate_tokens

IDS = torch.tensor([[5, 6, 7], [8, 9, 10]])
ALL: dict[str, Any] = {
    "return_dict_in_generate": True,
    "output_scores": True,
    "output_logits": True,
    "output_hidden_states": True,
    "output_logprobs": True,
    "top_logprobs": 4,
}
KINDS = ("DecoderOnly", "EncoderDecoder", "BeamDecoderOnly", "BeamEncoderDecoder")


def test_every_field_and_its_shape() -> None:
    output = generate_output(hf_model("llama"), IDS, do_sample=True, num_return_sequences=2, max_new_tokens=5, **ALL)
    assert output.sequences.shape == (4, 8)
    for name in ("scores", "logits"):
        assert [(t.shape, t.dtype) for t in output[name]] == [((4, 101), torch.float32)] * 5
    assert [t.shape for t in output.hidden_states[0]] == [(4, 3, 32)] * 3
    assert [[t.shape for t in step] for step in output.hidden_states[1:]] == [[(4, 1, 32)] * 3] * 4
    assert output.past_key_values.get_seq_length() == 7
    assert output.finish_reason == ["length"] * 4
    assert output.logprobs.shape == (4, 5)
    assert output.top_logprobs.token_ids.shape == output.top_logprobs.logprobs.shape == (4, 5, 4)
    assert output.attentions is None
    assert isinstance(output, GenerateDecoderOnlyOutput)


@pytest.mark.parametrize("kind", KINDS)
def test_fields_are_those_of_transformers(kind: str) -> None:
    ours, theirs = (getattr(module, f"Generate{kind}Output") for module in (outputs, transformers.generation))
    names = [f.name.replace("cache", "past_key_values") for f in dataclasses.fields(theirs)]
    assert [f.name for f in dataclasses.fields(ours)] == names
    assert ours(sequences=IDS).to_tuple() == (IDS,)


def test_kept_tensors_are_independent() -> None:
    output = generate_output(
        counting_table(), torch.tensor([[1]]), max_new_tokens=3, **{**ALL, "output_hidden_states": False}
    )
    assert [t.argmax().item() for t in output.scores] == [2, 3, 4]
    assert [t.argmax().item() for t in output.logits] == [2, 3, 4]


@pytest.fixture(params=["plain", "transformers"])
def output(request: pytest.FixtureRequest) -> Any:
    """The output of a plain module and of a transformers model; all tests below apply to both."""
    model = cached_model() if request.param == "plain" else hf_model("llama")
    settings = {name: value for name, value in ALL.items() if name != "output_hidden_states"}
    return generate_output(model, IDS, max_new_tokens=2, **settings)


def test_class_of_an_output(output: Any) -> None:
    assert isinstance(output, GenerateDecoderOnlyOutput) and isinstance(output, outputs.GenerateOutput)
    assert not isinstance(output, outputs.GenerateBeamDecoderOnlyOutput)
    assert isinstance(output, generation_utils.GenerateDecoderOnlyOutput) == isinstance(output, ModelOutput)
    assert isinstance(output, ModelOutput) == hasattr(output.past_key_values, "layers")


@pytest.mark.parametrize("beams", [False, True])
@pytest.mark.parametrize("has_encoder", [False, True])
def test_every_model_of_transformers_gets_its_classes(has_encoder: bool, beams: bool) -> None:
    model = encoder_decoder("t5") if has_encoder else hf_model("gpt2")
    name = f"Generate{'Beam' if beams else ''}{'EncoderDecoder' if has_encoder else 'DecoderOnly'}Output"
    settings: dict[str, Any] = {"decoder_start_token_id": 1, "return_dict_in_generate": True, "max_new_tokens": 2}
    output = generate_output(model, IDS, num_beams=2 if beams else 1, **settings)
    for module in (outputs, transformers.generation):
        assert isinstance(output, getattr(module, name))
    assert output.finish_reason == ["length"] * 2


def test_additions_are_attributes_and_no_items(output: Any) -> None:
    names = ["sequences", "scores", "logits", "cache" if "cache" in [*output] else "past_key_values"]
    assert list(output) == list(output.keys()) == names and len(output) == len(output.to_tuple()) == 4
    assert output.finish_reason == ["length"] * 2 and output.logprobs.shape == (2, 2)
    assert "finish_reason" not in output and output.get("logprobs") is None
    with pytest.raises(KeyError):
        output["top_logprobs"]


def test_access_by_name_index_and_attribute(output: Any) -> None:
    assert output.sequences is output["sequences"] is output[0]
    assert output[1:3] == (output.scores, output.logits)
    assert all(value is output[name] for name, value in output.items())
    assert "attentions" not in output and "logits" in output
    assert output.attentions is None and output.get("attentions", 3) == 3
    with pytest.raises(KeyError):
        output["attentions"]
    assert next(iter(output.values())) is output.sequences


def test_the_cache_has_two_names(output: Any) -> None:
    assert output.cache is output.past_key_values is output["cache"] is output["past_key_values"] is output[3]
    assert "cache" in output and "past_key_values" in output and output.get("cache") is output.cache
    output.cache = output["past_key_values"] = "other"
    output["cache"] = "another"
    assert output.past_key_values == output[3] == "another" and len(output) == 4


def test_new_items_and_new_values(output: Any) -> None:
    output["token_timestamps"] = IDS
    output.note = "an attribute alone"
    output.logits = None
    output["sequences"] = IDS
    assert output.token_timestamps is output["token_timestamps"] is output.to_tuple()[-1] is IDS
    assert [*output][-1] == "token_timestamps" and "note" not in output
    assert output.sequences is output[0] is IDS


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda output: pickle.loads(pickle.dumps(output))])
def test_copies_and_pickles_keep_everything(output: Any, duplicate: Callable[[Any], Any]) -> None:
    output["token_timestamps"] = IDS
    other = duplicate(output)
    assert type(other) is type(output) and [*other] == [*output]
    assert other.sequences.equal(output.sequences) and other.token_timestamps.equal(IDS)
    assert other.finish_reason == output.finish_reason and other.logprobs.equal(output.logprobs)
    other["more"] = 1
    assert "more" not in output


def test_trees_of_tensors(output: Any) -> None:
    tensors = type(output)({name: value for name, value in output.items() if isinstance(value, (Tensor, tuple))})
    doubled = pytree.tree_map(lambda tensor: tensor * 2, tensors)
    assert type(doubled) is type(output) and [*doubled] == ["sequences", "scores", "logits"]
    assert doubled.sequences.equal(output.sequences * 2) and doubled.scores[1].equal(output.scores[1] * 2)
    assert doubled.finish_reason is None


def test_gathered_from_pairs_as_data_parallel_does(output: Any) -> None:
    names = ["sequences", "scores"]
    joined = type(output)((name, output[name]) for name in names)
    assert [*joined] == names and joined.sequences is output.sequences and joined.logits is None


@pytest.mark.parametrize("do_sample", [False, True])
def test_logprobs_are_those_of_the_distribution_drawn_from(do_sample: bool) -> None:
    settings: dict[str, Any] = {"temperature": 0.7, "top_k": 6, "top_p": 0.9} if do_sample else {}
    output = generate_output(
        cached_model(),
        IDS,
        do_sample=do_sample,
        repetition_penalty=1.3,
        max_new_tokens=6,
        return_dict_in_generate=True,
        output_scores=True,
        output_logprobs=True,
        top_logprobs=8,
        **settings,
    )
    expected = torch.stack([scores.log_softmax(-1) for scores in output.scores], 1)
    chosen = expected.gather(2, output.sequences[:, 3:, None])[..., 0]
    torch.testing.assert_close(output.logprobs, chosen)
    best = expected.sort(dim=2, descending=True, stable=True)
    torch.testing.assert_close(output.top_logprobs.logprobs, best.values[..., :8])
    ids = best.indices[..., :8].masked_fill(best.values[..., :8].isneginf(), -1)
    assert torch.equal(output.top_logprobs.token_ids, ids)


def test_logprobs_after_the_end_of_a_row() -> None:
    output = generate_output(
        counting_table(),
        torch.tensor([[1], [4]]),
        eos_token_id=3,
        pad_token_id=0,
        max_new_tokens=4,
        return_dict_in_generate=True,
        output_logprobs=True,
        top_logprobs=2,
    )
    assert output.logprobs[0, 2:].tolist() == [0.0, 0.0]
    assert (output.logprobs[0, :2] < 0).all() and (output.logprobs[1] < 0).all()
    assert output.top_logprobs.token_ids.tolist()[0] == [[2, 3], [3, 4], [-1, -1], [-1, -1]]
    assert output.top_logprobs.logprobs[0, 2:].isneginf().all()


def test_logprobs_without_the_best() -> None:
    output = generate_output(
        cached_model(), IDS, max_new_tokens=2, return_dict_in_generate=True, output_logprobs=True, output_scores=False
    )
    assert output.logprobs.shape == (2, 2)
    assert output.top_logprobs is None and "scores" not in output


def test_renormalized_scores() -> None:
    settings: dict[str, Any] = {"max_new_tokens": 2, "return_dict_in_generate": True, "output_scores": True}
    plain = generate_output(cached_model(), IDS, **settings)
    normal = generate_output(cached_model(), IDS, renormalize_logits=True, **settings)
    for x, y in zip(plain.scores, normal.scores, strict=True):
        torch.testing.assert_close(x.log_softmax(-1), y)


def test_vocabulary_of_one() -> None:
    output = generate_tokens(TableModel(torch.zeros(1, 1)), torch.tensor([[0]]), do_sample=True, max_new_tokens=3)
    assert output.tolist() == [[0, 0, 0, 0]]
