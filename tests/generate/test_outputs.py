"""What comes back: fields, shapes, log-probabilities, and the ways to reach a field."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
import transformers

from pygen import outputs
from pygen.generate import generate
from pygen.outputs import GenerateDecoderOnlyOutput
from tests.generate.models import TableModel, cached_model, counting_table, hf_model

IDS = torch.tensor([[5, 6, 7], [8, 9, 10]])
ALL: dict[str, Any] = {
    "return_dict_in_generate": True,
    "output_scores": True,
    "output_logits": True,
    "output_hidden_states": True,
    "output_logprobs": True,
    "top_logprobs": 4,
}


def test_every_field_and_its_shape() -> None:
    output = generate(hf_model("llama"), IDS, do_sample=True, num_return_sequences=2, max_new_tokens=5, **ALL)
    assert isinstance(output, GenerateDecoderOnlyOutput)
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


@pytest.mark.parametrize("kind", ["DecoderOnly", "EncoderDecoder", "BeamDecoderOnly", "BeamEncoderDecoder"])
def test_fields_are_those_of_transformers_and_then_more(kind: str) -> None:
    ours, theirs = (getattr(module, f"Generate{kind}Output") for module in (outputs, transformers.generation))
    names = [f.name for f in dataclasses.fields(theirs)]
    more = ["finish_reason"] if kind.startswith("Beam") else ["finish_reason", "logprobs", "top_logprobs"]
    assert [f.name for f in dataclasses.fields(ours)] == names + more
    assert ours(sequences=IDS).to_tuple() == (IDS,)


def test_kept_tensors_are_independent() -> None:
    output = generate(counting_table(), torch.tensor([[1]]), max_new_tokens=3, **{**ALL, "output_hidden_states": False})
    assert [t.argmax().item() for t in output.scores] == [2, 3, 4]
    assert [t.argmax().item() for t in output.logits] == [2, 3, 4]


def test_access_by_name_place_and_attribute() -> None:
    output = GenerateDecoderOnlyOutput(IDS, logits=(IDS,), finish_reason=["eos"])
    assert output.sequences is output["sequences"] is output[0] is IDS
    assert output[1] == (IDS,)
    assert output[1:] == ((IDS,), ["eos"])
    assert output.to_tuple() == (IDS, (IDS,), ["eos"])
    assert list(output) == list(output.keys()) == ["sequences", "logits", "finish_reason"]
    assert len(output) == 3
    assert "scores" not in output and "logits" in output
    assert output.scores is None and output.get("scores", 3) == 3
    with pytest.raises(KeyError):
        output["scores"]
    output["finish_reason"] = ["stop"]
    assert output.finish_reason == ["stop"]
    with pytest.raises(KeyError):
        output["unknown"] = 1
    assert dict(output.items()).keys() == set(output) and next(iter(output.values())) is IDS


@pytest.mark.parametrize("do_sample", [False, True])
def test_logprobs_are_those_of_the_distribution_drawn_from(do_sample: bool) -> None:
    settings: dict[str, Any] = {"temperature": 0.7, "top_k": 6, "top_p": 0.9} if do_sample else {}
    output = generate(
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
    output = generate(
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
    output = generate(
        cached_model(), IDS, max_new_tokens=2, return_dict_in_generate=True, output_logprobs=True, output_scores=False
    )
    assert output.logprobs.shape == (2, 2)
    assert "top_logprobs" not in output and "scores" not in output


def test_renormalized_scores() -> None:
    settings: dict[str, Any] = {"max_new_tokens": 2, "return_dict_in_generate": True, "output_scores": True}
    plain = generate(cached_model(), IDS, **settings)
    normal = generate(cached_model(), IDS, renormalize_logits=True, **settings)
    for x, y in zip(plain.scores, normal.scores, strict=True):
        torch.testing.assert_close(x.log_softmax(-1), y)


def test_vocabulary_of_one() -> None:
    output = generate(TableModel(torch.zeros(1, 1)), torch.tensor([[0]]), do_sample=True, max_new_tokens=3)
    assert output.tolist() == [[0, 0, 0, 0]]
