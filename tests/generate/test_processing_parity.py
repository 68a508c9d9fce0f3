"""Settings that act on scores: tokens and scores against transformers, over generated configurations."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from tests.generate.models import FAMILIES, VOCAB_SIZE, hf_model
from tests.helpers.generation import generate_output, generate_tokens
from tests.helpers.releases import since

CASES, CASES_PER_TEST = 40, 8
FORCED = (13, 5, 6, 7)  # forced ids, never suppressed
BANS = (
    "no_repeat_ngram_size",
    "encoder_no_repeat_ngram_size",
    "bad_words_ids",
    "min_new_tokens",
    "prefix_allowed_tokens_fn",
    "forced_bos_token_id",
    "forced_eos_token_id",
)


def allowed(batch_id: int, ids: Tensor) -> list[int]:
    return [token_id for token_id in range(VOCAB_SIZE) if (token_id + batch_id + len(ids)) % 3]


def make_case(family: str, number: int) -> tuple[Tensor, dict[str, Any]]:
    draw = random.Random(f"{family} {number}")
    batch_size, length = draw.randint(1, 3), draw.choice([1, 3, 6])
    input_ids = torch.tensor([[draw.randrange(20, 28) for _ in range(length)] for _ in range(batch_size)])

    def ids(count: int) -> list[int]:
        return [token_id for token_id in draw.sample(range(VOCAB_SIZE), count) if token_id not in FORCED]

    words = [[draw.randrange(1, VOCAB_SIZE)], [21, 22], [22, 23, 24], [draw.randrange(20, 28), 25]]
    settings: dict[str, Any] = {
        "sequence_bias": {tuple(word): draw.uniform(-6, 6) for word in words},
        "repetition_penalty": draw.choice([0.7, 1.8]),
        "no_repeat_ngram_size": draw.choice([1, 2]),
        "encoder_repetition_penalty": draw.choice([0.7, 1.8]),
        "encoder_no_repeat_ngram_size": draw.choice([1, 2]),
        "bad_words_ids": words,
        "min_new_tokens": draw.randint(1, 4),
        "prefix_allowed_tokens_fn": allowed,
        "forced_bos_token_id": FORCED[0],
        "forced_eos_token_id": draw.choice([FORCED[1], list(FORCED[2:])]),
        "remove_invalid_values": True,
        "exponential_decay_length_penalty": (draw.randint(0, 2), draw.choice([1.1, 0.8])),
        "suppress_tokens": ids(30),
        "begin_suppress_tokens": ids(40),
        "renormalize_logits": True,
        "watermarking_config": transformers.WatermarkingConfig(bias=2.5),
        "guidance_scale": draw.choice([0.5, 1.5]),
    }
    settings = {name: value for name, value in settings.items() if draw.random() < 0.25}
    if since("5.18"):  # transformers forces the allowed tokens even if other settings ban all of them
        settings.pop("prefix_allowed_tokens_fn", None)
    if "exponential_decay_length_penalty" in settings:  # transformers makes NaN of an end that is banned before it
        settings = {name: value for name, value in settings.items() if name not in BANS}
    if draw.random() < 0.6:
        settings |= {"do_sample": True, "temperature": 0.8, "top_k": draw.choice([0, 7, 50])}
        settings |= {"top_p": draw.choice([1.0, 0.8])}
    if draw.random() < 0.3:
        settings["logits_processor"] = [transformers.TemperatureLogitsWarper(1.5), transformers.MinPLogitsWarper(0.01)]
    return input_ids, settings | {"eos_token_id": 5, "pad_token_id": 0, "max_new_tokens": 7}


@pytest.mark.usefixtures("whole_texts")
@pytest.mark.parametrize("first", range(0, CASES, CASES_PER_TEST))
@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_and_scores_are_those_of_transformers(family: str, first: int) -> None:
    model = hf_model(family)
    for number in range(first, first + CASES_PER_TEST):
        input_ids, settings = make_case(family, number)
        length = input_ids.shape[1]
        settings |= {"return_dict_in_generate": True, "output_scores": True}
        torch.manual_seed(number)
        expected = model.generate(input_ids, **settings)
        torch.manual_seed(number)
        actual = generate_output(model, input_ids, **settings)
        assert torch.equal(actual.sequences, expected.sequences), (number, settings)
        for step, (ours, theirs) in enumerate(zip(actual.scores, expected.scores, strict=True)):
            # transformers also calls `prefix_allowed_tokens_fn` for ended rows.
            runs = (actual.sequences[:, length : length + step] != 5).all(1)
            assert torch.allclose(ours[runs], theirs[runs], rtol=2e-4, atol=2e-4), (number, settings)


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_negative_prompts(family: str, use_cache: bool) -> None:
    model = hf_model(family)
    ids, negative = torch.tensor([[21, 22, 23], [24, 25, 26]]), torch.tensor([[0, 31], [32, 33]])
    settings: dict[str, Any] = {"guidance_scale": 2.0, "max_new_tokens": 6, "pad_token_id": 0, "use_cache": use_cache}
    settings |= {"negative_prompt_ids": negative, "negative_prompt_attention_mask": (negative != 0).long()}
    alone = {"negative_prompt_ids": negative[:1, 1:], "negative_prompt_attention_mask": None}
    # transformers counts padding among the positions.
    expected = torch.cat([model.generate(ids[:1], **{**settings, **alone}), model.generate(ids, **settings)[1:]])
    assert torch.equal(generate_tokens(model, ids, **settings), expected)
    assert not torch.equal(generate_tokens(model, ids, max_new_tokens=6, pad_token_id=0), expected)
    copies = generate_tokens(model, ids, do_sample=True, top_k=1, num_return_sequences=2, **settings)
    assert torch.equal(copies, expected.repeat_interleave(2, dim=0))


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_guidance_follows_the_beams(family: str, use_cache: bool) -> None:
    """transformers does not reorder the unconditional cache with the beams; pygen's equals a recomputation."""
    model, scale = hf_model(family), 1.8
    ids = torch.tensor([[21, 22, 23], [24, 25, 26]])

    def guide_without_cache(input_ids: Tensor, scores: Tensor) -> Tensor:
        unconditional: Tensor = model(input_ids[:, ids.shape[1] - 1 :]).logits[:, -1].log_softmax(-1)
        return unconditional + (scores.log_softmax(-1) - unconditional) * scale

    settings: dict[str, Any] = {"num_beams": 4, "max_new_tokens": 9, "pad_token_id": 0, "use_cache": use_cache}
    settings |= {"num_return_sequences": 3, "return_dict_in_generate": True, "output_scores": True}
    expected = generate_output(model, ids, logits_processor=[guide_without_cache], **settings)
    actual = generate_output(model, ids, guidance_scale=scale, **settings)
    assert torch.equal(actual.sequences, expected.sequences)
    torch.testing.assert_close(actual.sequences_scores, expected.sequences_scores, rtol=1e-4, atol=1e-4)
