"""Constrained and diverse beam search through `generate`: wiring, outputs, and refusals."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch

from pygen import explain
from pygen.decode.constraints import PhrasalConstraint
from pygen.generate import generate
from tests.generate.models import encoder_decoder, hf_model
from tests.generate.searches import constrained, diverse
from tests.generate.test_beams import NoCacheModel, TupleCacheModel
from tests.helpers.generation import generate_output, generate_tokens

IDS = torch.tensor([[5, 6, 7], [8, 9, 10]])
PLAIN: dict[str, Any] = {"num_beams": 4, "max_new_tokens": 6, "pad_token_id": 3}
GROUPS: dict[str, Any] = {**PLAIN, "num_beam_groups": 2, "diversity_penalty": 0.7}
WORDS: dict[str, Any] = {**PLAIN, "force_words_ids": [[20, 21]]}


@pytest.mark.parametrize("family", ["llama", "gpt2", "t5"])
def test_groups_and_words(family: str) -> None:
    model: Any = encoder_decoder(family) if family == "t5" else hf_model(family)
    extra: dict[str, Any] = {"decoder_start_token_id": 1} if family == "t5" else {}
    in_groups = generate_tokens(model, IDS, num_return_sequences=4, **{**GROUPS, "diversity_penalty": 90.0}, **extra)
    assert in_groups.shape[0] == 8
    firsts = in_groups[:, -6].view(2, 4)
    assert all(len(set(row.tolist())) > 1 for row in firsts)
    forced = generate_tokens(model, IDS, **WORDS, **extra)
    assert all("20, 21" in str(row) for row in forced.tolist())


@pytest.mark.parametrize("settings", [PLAIN, GROUPS, WORDS])
def test_a_plain_module_keeps_its_cache(settings: dict[str, Any]) -> None:
    lengths: list[int] = []
    model = TupleCacheModel()
    model.register_forward_pre_hook(
        lambda _, args, kwargs: lengths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    found = generate_tokens(model, IDS, **settings)
    assert lengths == [3, 1, 1, 1, 1, 1]
    assert torch.equal(found, generate_tokens(NoCacheModel(), IDS, **settings))


@pytest.mark.parametrize("settings", [PLAIN, GROUPS, WORDS])
def test_cancelled_before_it_began(settings: dict[str, Any]) -> None:
    model, cancel = hf_model("llama"), threading.Event()
    cancel.set()
    cache = generate_output(
        model, IDS.repeat_interleave(4, 0), max_new_tokens=1, return_dict_in_generate=True
    ).past_key_values
    longer = torch.cat([IDS, IDS], dim=1)
    output = generate_output(
        model,
        longer,
        cancel=cancel,
        past_key_values=cache,
        return_dict_in_generate=True,
        output_scores=True,
        **settings,
    )
    assert torch.equal(output.sequences, longer)
    assert output.finish_reason == ["stop", "stop"]
    assert output.past_key_values.get_seq_length() == 3


@pytest.mark.parametrize("eos_token_id", [-1, [11, 5000]])
def test_ends_outside_the_vocabulary_with_constraints(eos_token_id: Any) -> None:
    settings = {**WORDS, "force_words_ids": [[20]], "max_new_tokens": 9, "suppress_tokens": [20]}
    ids = torch.tensor([[5, 20, 7]])
    assert generate_tokens(hf_model("llama"), ids, eos_token_id=eos_token_id, **settings).shape[1] <= 12


def test_the_searches_of_the_loops() -> None:
    model = hf_model("llama")
    settings: dict[str, Any] = {"return_dict_in_generate": True, "output_scores": True, "num_return_sequences": 2}
    for found, expected in (
        (generate_output(model, IDS, **GROUPS, **settings), diverse(model, IDS, num_return_sequences=2, **GROUPS)),
        (generate_output(model, IDS, **WORDS, **settings), constrained(model, IDS, num_return_sequences=2, **WORDS)),
    ):
        assert torch.equal(found.sequences, expected.sequences)
        assert torch.equal(found.beam_indices, expected.beam_indices)
        torch.testing.assert_close(found.sequences_scores, expected.sequences_scores)
        torch.testing.assert_close(found.scores, expected.scores)


def test_constraint_objects() -> None:
    model = hf_model("llama")
    by_object = generate_tokens(model, IDS, **PLAIN, constraints=[PhrasalConstraint([20, 21])])
    assert torch.equal(by_object, generate_tokens(model, IDS, **WORDS))


@pytest.mark.parametrize("settings", [GROUPS, WORDS])
def test_records_follow_the_beams(settings: dict[str, Any]) -> None:
    model = hf_model("gpt2")
    output = generate_output(
        model, IDS, return_dict_in_generate=True, output_hidden_states=True, output_logits=True, **settings
    )
    for hidden, logits in zip(output.hidden_states, output.logits, strict=True):
        torch.testing.assert_close(model.lm_head(hidden[-1][:, -1]), logits, rtol=1e-4, atol=1e-4)


class Streamer:
    def put(self, value: Any) -> None: ...
    def end(self) -> None: ...


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({**GROUPS, "num_beam_groups": 3}, "`num_beam_groups` must divide `num_beams`"),
        ({**GROUPS, "diversity_penalty": 0.0}, "`diversity_penalty` must be finite and > 0"),
        ({**GROUPS, "do_sample": True}, "`do_sample` must be False with `num_beam_groups`"),
        ({**GROUPS, "streamer": Streamer()}, "`streamer` must be None with `num_beam_groups`"),
        ({**PLAIN, "diversity_penalty": 0.5}, "`diversity_penalty` needs `num_beam_groups` > 1"),
        ({**WORDS, "do_sample": True}, "`do_sample` must be False with `force_words_ids`"),
        ({**WORDS, "num_beams": 1}, "`num_beams` must be > 1 with `force_words_ids`"),
        ({**WORDS, "streamer": Streamer()}, "`streamer` must be None with `force_words_ids`"),
        ({**PLAIN, "force_words_ids": []}, "`force_words_ids` must be a non-empty list"),
        ({**PLAIN, "constraints": ["word"]}, "`constraints"),
    ],
)
def test_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        generate(hf_model("llama"), IDS, **settings)


@pytest.mark.parametrize("settings", [PLAIN, GROUPS, WORDS])
def test_explained(settings: dict[str, Any]) -> None:
    assert "beam" in str(explain(hf_model("llama"), inputs=IDS, **settings))
