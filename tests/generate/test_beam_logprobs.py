"""`output_logprobs` with beams: ln softmax of the processed scores at every token, along the ancestor beams."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

import pygen
from pygen.generate import generate
from pygen.streaming import stream
from tests.generate.models import VOCAB_SIZE, encoder_decoder, hf_model
from tests.helpers.generation import generate_output
from tests.runtime.calls import same

IDS = torch.randint(1, VOCAB_SIZE, (2, 5), generator=torch.Generator().manual_seed(0))
WANTED: dict[str, Any] = {
    "num_beams": 4,
    "num_return_sequences": 3,
    "max_new_tokens": 8,
    "pad_token_id": 0,
    "return_dict_in_generate": True,
    "output_logprobs": True,
    "top_logprobs": 3,
}
# Enough end tokens that hypotheses end at every step.
ENDS: dict[str, Any] = {"eos_token_id": list(range(40, 50))}


def favour(input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    return scores + torch.linspace(0, 2, scores.shape[1])


SETTINGS: dict[str, dict[str, Any]] = {
    "search": {},
    "ends": ENDS,
    "early": {**ENDS, "early_stopping": True, "length_penalty": -1.0},
    "penalties": {**ENDS, "repetition_penalty": 1.5, "no_repeat_ngram_size": 2, "min_new_tokens": 3},
    "processor": {**ENDS, "logits_processor": [favour]},
    "processor, then knobs": {**ENDS, "do_sample": True, "seed": 1, "logits_processor": [favour], "top_k": 20},
    "sampling": {"do_sample": True, "seed": 3, "temperature": 0.7, "top_k": 20, "top_p": 0.9, **ENDS},
    "groups": {"num_beam_groups": 2, "diversity_penalty": 1.5, **ENDS},
    "groups, penalties": {"num_beam_groups": 4, "diversity_penalty": 0.5, "repetition_penalty": 1.3, **ENDS},
    "words": {"force_words_ids": [[7, 9], [11]]},
    "steps beyond the first room": {"max_new_tokens": 30},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_as_the_scores_of_all_tokens_say(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pygen.ops._growth.FIRST_CAPACITY", 16)
    model, settings = hf_model("llama"), {**WANTED, **SETTINGS[name]}
    output = generate_output(model, IDS, output_scores=True, **settings)
    expected = pygen.compute_transition_scores(
        output.sequences, output.scores, output.beam_indices, normalize_logits=True
    )
    assert torch.allclose(output.logprobs, expected, atol=1e-5)
    ended = output.beam_indices < 0
    assert bool((output.logprobs[ended] == 0).all())
    for row, step in (~ended).nonzero().tolist():
        of_beam = output.scores[step][output.beam_indices[row, step]].log_softmax(-1)
        assert torch.allclose(output.top_logprobs.logprobs[row, step], of_beam.topk(3).values, atol=1e-5)
    assert bool((output.top_logprobs.token_ids[ended] == -1).all())
    assert bool((output.top_logprobs.logprobs[ended] == -math.inf).all())
    # The log-probabilities do not depend on whether scores are returned, and the sequences on neither.
    alone = generate_output(model, IDS, **settings)
    assert torch.equal(alone.sequences, output.sequences) and alone.scores is None
    assert same([alone.logprobs, *alone.top_logprobs], [output.logprobs, *output.top_logprobs])
    plain = generate_output(model, IDS, **{**settings, "output_logprobs": None, "top_logprobs": None})
    assert torch.equal(plain.sequences, output.sequences) and plain.logprobs is None


@pytest.mark.parametrize("length_penalty", [1.0, 0.0, -0.5])
def test_sums_are_the_scores_of_sequences(length_penalty: float) -> None:
    settings = {**WANTED, **ENDS, "output_scores": True, "length_penalty": length_penalty, "top_logprobs": None}
    output = generate_output(hf_model("gpt2"), IDS, **settings)
    lengths = (output.beam_indices >= 0).sum(1)
    assert len(set(lengths.tolist())) > 1 and output.top_logprobs is None
    assert torch.allclose(output.logprobs.sum(1) / lengths**length_penalty, output.sequences_scores, atol=1e-5)


def test_encoder_decoder_models_and_patched_ones() -> None:
    settings = {**WANTED, **ENDS, "decoder_start_token_id": 1}
    model = encoder_decoder("t5")
    with pygen.patch(model):
        output = model.generate(IDS, **settings, output_scores=True)
    expected = pygen.compute_transition_scores(output.sequences, output.scores, output.beam_indices)
    assert torch.allclose(output.logprobs, expected, atol=1e-5)


@pytest.mark.parametrize("settings", [{}, ENDS, {"do_sample": True, "seed": 2, "top_p": 0.9}])
def test_streamed(settings: dict[str, Any]) -> None:
    settings = {**WANTED, **settings, "num_return_sequences": 1, "top_logprobs": None}
    output = generate_output(hf_model("llama"), IDS[:1], **settings)
    events = list(stream(hf_model("llama"), IDS[:1], **settings))
    assert [event.token_id for event in events] == output.sequences[0, 5:].tolist()
    assert [event.logprob for event in events] == output.logprobs[0].tolist()


def test_refused() -> None:
    for settings, message in (
        ({"output_logprobs": None}, "`top_logprobs`=3 needs `output_logprobs=True`"),
        ({"return_dict_in_generate": False}, "needs `return_dict_in_generate=True`"),
    ):
        with pytest.raises(ValueError, match=message):
            generate(hf_model("llama"), IDS, **{**WANTED, **settings})
