"""DoLa: against its definition, and against recorded results of transformers 4.55."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch

import pygen
from pygen.decode.dola_scores import candidate_layers, contrast
from pygen.generate import generate
from tests.generate.models import counting_table, encoder_decoder
from tests.helpers import naive_contrasts
from tests.helpers.generation import generate_tokens
from tests.oracles import cases
from tests.oracles.replay import assert_as_recorded, assert_same_models
from tests.shadow.architectures import tiny_model

PROMPTS = [[5, 6, 7, 8, 9, 20], [12, 9, 30, 31, 2, 44], [3, 40, 11]]
PADDED = torch.tensor([[*[0] * (6 - len(prompt)), *prompt] for prompt in PROMPTS])
MASK = torch.tensor([[*[0] * (6 - len(prompt)), *[1] * len(prompt)] for prompt in PROMPTS])
ALL = [0, 1, 2, 3, 4, 5]


def search(**settings: Any) -> Any:
    defaults = {"attention_mask": MASK, "max_new_tokens": 10, "dola_layers": ALL, "pad_token_id": 0}
    return generate(cases.seeded_model("llama"), PADDED, **{**defaults, **settings})


def test_models_are_those_of_the_recording() -> None:
    assert_same_models("dola")


@pytest.mark.parametrize("name", cases.DOLA)
def test_calls_give_what_transformers_4_55_gave(name: str) -> None:
    assert_as_recorded("dola", name)


def test_every_row_is_contrasted_as_it_would_be_alone() -> None:
    """transformers picks the layer with the largest distance on average over the batch, ended rows included."""
    model = cases.seeded_model("llama")
    expected = [naive_contrasts.dola(model, prompt, ALL, 10) for prompt in PROMPTS]
    assert search()[:, 6:].tolist() == expected


@pytest.mark.parametrize(
    "name", ["MambaForCausalLM", "JambaForCausalLM", "Gemma3ForCausalLM", "RecurrentGemmaForCausalLM"]
)
def test_models_with_states_and_windows(name: str) -> None:
    model = tiny_model(name)
    prompts = [prompt[:5] for prompt in PROMPTS[:2]]
    expected = [naive_contrasts.dola(model, prompt, [0, 1], 5) for prompt in prompts]
    settings: dict[str, Any] = {"max_new_tokens": 5, "pad_token_id": 0, "eos_token_id": None}
    result = generate_tokens(model, torch.tensor(prompts), dola_layers=[0, 1], **settings)
    assert result[:, 5:].tolist() == expected


LAYERS: list[tuple[str | list[int], int, bool, list[int]]] = [
    ("low", 1, False, [0]),
    ("low", 6, False, [0, 2]),
    ("low", 32, False, [*range(0, 16, 2)]),
    ("low", 41, False, [*range(0, 20, 2)]),
    ("low", 1, True, [0]),
    ("low", 2, True, [1]),
    ("low", 3, True, [2]),
    ("low", 4, True, [2]),
    ("low", 12, True, [2, 4]),
    ("high", 1, False, [0]),
    ("high", 7, False, [3, 5]),
    ("high", 40, True, [*range(20, 40, 2)]),
    ("high", 41, True, [*range(21, 41, 2)]),
    ([4, 0, 6, 7], 6, True, [4, 0]),
]


@pytest.mark.parametrize(("asked", "num_layers", "tied", "expected"), LAYERS)
def test_layers_to_contrast_with(asked: str | list[int], num_layers: int, tied: bool, expected: list[int]) -> None:
    assert candidate_layers(asked, num_layers, tied=tied) == expected


def test_contrast_by_hand() -> None:
    p = torch.tensor([[0.5, 0.3, 0.16, 0.04], [0.25, 0.25, 0.25, 0.25]])
    near = torch.tensor([[0.5, 0.25, 0.2, 0.05], [0.2, 0.4, 0.2, 0.2]])
    far = torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.25, 0.25, 0.25, 0.25]])
    result = contrast(p.log() + 3.0, [near.log(), far.log() - 2.0])
    # Row 0 is further from the second layer, row 1 from the first. 0.04 is below a tenth of 0.5.
    expected = torch.stack([(p / far)[0], (p / near)[1]]).log()
    expected[0, 3] = -math.inf
    torch.testing.assert_close(result, expected)
    assert torch.equal(contrast(p.log(), [far.log(), far.log()]), contrast(p.log(), [far.log()]))
    impossible = contrast(torch.tensor([[0.0, -math.inf]]), [torch.tensor([[0.0, -math.inf]]), torch.zeros(1, 2)])
    assert impossible.tolist() == [pytest.approx([math.log(2), -math.inf])]
    assert contrast(torch.tensor([[0.0, math.nan]]), [torch.zeros(1, 2)]).isnan().all()


def test_outputs() -> None:
    output = search(
        return_dict_in_generate=True, output_scores=True, output_logits=True, output_logprobs=True, eos_token_id=20
    )
    tokens = output.sequences[:, 6:]
    assert output.finish_reason == ["eos" if 20 in row else "length" for row in tokens.tolist()]
    # `logits` are the last layer's, `scores` the contrast, and log-probabilities those of the scores.
    with torch.no_grad():
        position_ids = (MASK.cumsum(1) - 1).clamp(min=0)
        read = cases.seeded_model("llama")(PADDED, attention_mask=MASK, position_ids=position_ids)
    torch.testing.assert_close(output.logits[0], read.logits[:, -1])
    first = output.scores[0].log_softmax(-1).gather(1, tokens[:, :1])[:, 0]
    torch.testing.assert_close(output.logprobs[:, 0], first)
    assert output.hidden_states is None


@pytest.mark.parametrize(
    "settings", [{"use_cache": False}, {"cache_implementation": "static"}, {"prefill_chunk_size": 2}]
)
def test_caches_do_not_change_the_tokens(settings: dict[str, Any]) -> None:
    assert torch.equal(search(**settings), search())


def test_a_call_continues_a_given_cache() -> None:
    model = cases.seeded_model("llama")
    first = search(max_new_tokens=4, return_dict_in_generate=True)
    mask = torch.cat([MASK, MASK.new_ones(3, 4)], dim=1)
    more: dict[str, Any] = {"attention_mask": mask, "max_new_tokens": 6, "dola_layers": ALL, "pad_token_id": 0}
    result = generate_tokens(model, first.sequences, past_key_values=first.past_key_values, **more)
    assert torch.equal(result, search())


def test_seeds_copies_and_patched_models() -> None:
    sampled = {"do_sample": True, "num_return_sequences": 2, "seed": 3}
    rows = search(**sampled)
    assert rows.shape == (6, 16) and len({tuple(row) for row in rows[:, 6:].tolist()}) > 3
    model = cases.seeded_model("llama")
    with pygen.patch(model):
        assert torch.equal(
            model.generate(PADDED, attention_mask=MASK, dola_layers=ALL, max_new_tokens=10, **sampled), rows
        )


def test_half_precision_is_contrasted_in_float32() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, early = (torch.randn(2, 500, generator=generator).bfloat16() for _ in range(2))
    p, q = logits.double().log_softmax(-1), early.double().log_softmax(-1)
    result = contrast(logits, [early])
    kept = result > -math.inf
    assert result.dtype == torch.float32 and torch.equal(kept, p >= p.amax(-1, keepdim=True) + math.log(0.1))
    torch.testing.assert_close(result[kept].double(), (p - q)[kept], rtol=1e-5, atol=1e-5)
    model = copy.deepcopy(cases.seeded_model("llama")).bfloat16()
    settings: dict[str, Any] = {"dola_layers": ALL, "max_new_tokens": 3, "pad_token_id": 0}
    assert generate_tokens(model, PADDED, attention_mask=MASK, **settings).shape == (3, 9)


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"prompt_lookup_num_tokens": 3}, "`dola_layers` must be None with `prompt_lookup_num_tokens`"),
    ({"num_beams": 2}, "`num_beams` must be 1 with `dola_layers`"),
    ({"force_words_ids": [[3]], "num_beams": 1}, "`force_words_ids` must be None with `dola_layers`"),
    ({"penalty_alpha": 0.6, "top_k": 4}, "`penalty_alpha` must be 0 with `dola_layers`"),
    ({"dola_layers": [6, 7]}, r"`dola_layers` must hold a layer in \[0, 6\), got \[6, 7\]"),
    ({"dola_layers": "middle"}, "`dola_layers` must be 'low', 'high' or a list"),
    ({"dola_layers": []}, "`dola_layers` must"),
]


@pytest.mark.parametrize(("settings", "text"), REFUSED, ids=[text for _, text in REFUSED])
def test_refusals(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        search(**settings)


def test_models_without_head_or_with_encoder_are_refused() -> None:
    with pytest.raises(
        ValueError, match="`dola_layers` must be None for BartForConditionalGeneration, which has an enc"
    ):
        generate(
            encoder_decoder("bart"),
            torch.tensor(PROMPTS[:2]),
            dola_layers="low",
            decoder_start_token_id=1,
            max_new_tokens=2,
        )
    electra = tiny_model("ElectraForCausalLM")
    with pytest.raises(ValueError, match="whose head reads 128 numbers where its layers have 32"):
        generate(electra, torch.tensor(PROMPTS[:2]), dola_layers="low", max_new_tokens=2)
    with pytest.raises(ValueError, match="`dola_layers` must be None for TableModel, which shows no head"):
        generate(counting_table(), torch.tensor([[1, 2]]), dola_layers="low", max_new_tokens=2)


def test_a_missing_penalty_against_repetition_is_noted(caplog: pytest.LogCaptureFixture) -> None:
    search(max_new_tokens=1, repetition_penalty=1.2)
    assert not caplog.records
    search(max_new_tokens=1)
    assert "`repetition_penalty` should be 1.2 or more, got 1.0" in caplog.text


def test_explain() -> None:
    explained = pygen.explain(
        cases.seeded_model("llama"), PADDED, dola_layers="low", max_new_tokens=3, repetition_penalty=1.3
    )
    assert (explained.mode, explained.rows) == ("dola_generation", 3)
    assert "argmax, of the last layer's scores beside those of `dola_layers`='low'" in str(explained)
    assert not explained.ignored
