"""Beam search and beam sampling of `pygen.generate` against `transformers`, over generated configurations."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch import Tensor

from pygen.models.versions import CACHE_NAMES
from tests.generate.models import ENCODER_DECODERS, VOCAB_SIZE, encoder_decoder, hf_model
from tests.helpers.generation import generate_output

CASES_PER_FAMILY = {"llama": 320, "gpt2": 320, "qwen2": 160, "t5": 120, "bart": 120}
SAMPLED_PER_FAMILY = {"llama": 80, "gpt2": 80, "t5": 60}
CASES_PER_TEST = 20

# Sums of a dozen float32 scores up to 30 differ by this much if their terms are rounded differently.
BAND = 5e-5
SCORE_TOLERANCE: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-4}


def make_case(family: str, number: int, sampled: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns (inputs, settings) of one configuration, a function of its number."""
    draw = random.Random(f"beams {family} {number} {sampled}")
    batch_size, length = draw.choice([1, 1, 2, 3]), draw.randint(1, 6)
    ids = torch.tensor([[draw.randrange(4, VOCAB_SIZE) for _ in range(length)] for _ in range(batch_size)])
    mask = torch.ones_like(ids)
    inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": mask}
    # The pad id is never 0, because transformers would fill with the first EOS id, and pygen fills with 0.
    settings: dict[str, Any] = {"num_beams": draw.choice([2, 2, 3, 4, 4, 5, 8, 16]), "pad_token_id": 3}
    padded = length > 1 and draw.random() < 0.3
    if padded:
        lengths = [draw.randint(1, length) for _ in range(batch_size)]
        hidden = [[0] * (length - n) + [1] * n for n in lengths]
        mask = torch.tensor([row[::-1] for row in hidden] if family in ENCODER_DECODERS else hidden)
        inputs = {"input_ids": ids.masked_fill(mask == 0, 3), "attention_mask": mask}
    if family in ENCODER_DECODERS:
        settings["decoder_start_token_id"] = draw.choice([1, 2])

    num_eos = draw.choice([0, 1, 1, 2, 3])
    if num_eos:
        settings["eos_token_id"] = draw.sample(range(4, VOCAB_SIZE), num_eos)
    settings["max_new_tokens"] = draw.choice([1, 2, 4, 7, 10])
    settings["length_penalty"] = draw.choice([-1.0, 0.0, 0.5, 1.0, 2.0])
    settings["early_stopping"] = draw.choice([False, True, "never"])
    settings["num_return_sequences"] = draw.randint(1, settings["num_beams"])
    if draw.random() < 0.25:
        settings["min_new_tokens"] = draw.randint(1, 3)
    if draw.random() < 0.25:
        settings["suppress_tokens"] = draw.sample(range(VOCAB_SIZE), 20)
    if not padded and draw.random() < 0.3:
        settings["repetition_penalty"] = draw.choice([0.8, 1.3])
    if not padded and draw.random() < 0.3:
        settings["no_repeat_ngram_size"] = draw.choice([1, 2, 3])
    if draw.random() < 0.15:
        settings["bad_words_ids"] = [[7], [8, 9], draw.sample(range(VOCAB_SIZE), 2)]
    if draw.random() < 0.15:
        settings["renormalize_logits"] = True
    if draw.random() < 0.2:
        settings["use_cache"] = False
    if sampled:
        # Flat scores, so that the first step's only beam has n * (1 + EOS ids) tokens to draw. If fewer have a positive
        # probability, transformers continues with the others in an arbitrary order.
        choices = {"temperature": [4.0, 8.0]} if family == "t5" else SAMPLING
        settings |= {"do_sample": True, "top_k": 0, "num_beams": draw.choice([2, 3, 4])}
        settings |= {name: draw.choice(values) for name, values in choices.items() if draw.random() < 0.5}
        settings["num_return_sequences"] = draw.randint(1, settings["num_beams"])
    if draw.random() < 0.5:
        names = ["output_scores", "output_logits", "output_hidden_states", "output_attentions"]
        settings |= {name: True for name in names if draw.random() < 0.5}
    settings |= {"return_dict_in_generate": True, "output_scores": True}
    return inputs, settings


SAMPLING: dict[str, list[Any]] = {
    "temperature": [0.7, 1.5, 3.0],
    "top_k": [40, 60],
    "top_p": [0.9, 0.98],
    "min_p": [1e-4],
}


def same(ours: Any, theirs: Any) -> bool:
    """Compares nested tuples of tensors, up to rounding."""
    if isinstance(theirs, Tensor):
        largest = float(theirs[theirs.isfinite()].abs().max()) if bool(theirs.isfinite().any()) else 0.0
        return ours.shape == theirs.shape and torch.allclose(ours, theirs, rtol=0, atol=2e-4 * (1 + largest))
    if isinstance(theirs, tuple):
        return len(ours) == len(theirs) and all(map(same, ours, theirs))
    return ours is None and theirs is None


def is_close_call(ours: Any, theirs: Any) -> bool:
    """Returns whether the first differing row may differ: its two hypotheses score the same within BAND."""
    width = min(ours.sequences.shape[1], theirs.sequences.shape[1])
    rows = (ours.sequences[:, :width] != theirs.sequences[:, :width]).any(1)
    rows |= torch.tensor(ours.sequences.shape[1] != theirs.sequences.shape[1])
    gap = (ours.sequences_scores - theirs.sequences_scores).abs() / (1 + theirs.sequences_scores.abs())
    return bool((gap[rows] < BAND).all())


def compare(family: str, number: int, sampled: bool, close_calls: list[str]) -> None:
    model = encoder_decoder(family) if family in ENCODER_DECODERS else hf_model(family)
    inputs, settings = make_case(family, number, sampled)
    about = f"{family} case {number}: {settings}"
    torch.manual_seed(number)
    theirs = model.generate(**inputs, **settings)
    after = torch.get_rng_state()
    torch.manual_seed(number)
    ours = generate_output(model, **inputs, **settings)

    if not torch.equal(ours.sequences, theirs.sequences) or not torch.equal(ours.beam_indices, theirs.beam_indices):
        assert is_close_call(ours, theirs), f"{about}\n{ours.sequences}\n{theirs.sequences}"
        close_calls.append(about)
        return
    assert ours.sequences.dtype == theirs.sequences.dtype and ours.beam_indices.dtype == theirs.beam_indices.dtype
    torch.testing.assert_close(ours.sequences_scores, theirs.sequences_scores, **SCORE_TOLERANCE, msg=about)
    assert torch.equal(torch.get_rng_state(), after), about
    for name in set(theirs) - {"sequences", "sequences_scores", "beam_indices", *CACHE_NAMES}:
        assert same(getattr(ours, name), theirs[name]), f"{name} of {about}"


@pytest.fixture(scope="module")
def close_calls() -> list[str]:
    return []


def blocks(counts: dict[str, int]) -> list[tuple[str, int]]:
    return [(family, first) for family, count in counts.items() for first in range(0, count, CASES_PER_TEST)]


@pytest.mark.usefixtures("whole_texts")
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(("family", "first"), blocks(CASES_PER_FAMILY))
def test_beam_search(family: str, first: int, close_calls: list[str]) -> None:
    for number in range(first, first + CASES_PER_TEST):
        compare(family, number, False, close_calls)


@pytest.mark.usefixtures("whole_texts")
@pytest.mark.usefixtures("whole_texts")
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(("family", "first"), blocks(SAMPLED_PER_FAMILY))
def test_beam_sampling(family: str, first: int, close_calls: list[str]) -> None:
    for number in range(first, first + CASES_PER_TEST):
        compare(family, number, True, close_calls)


def test_differences_within_the_band_are_few(close_calls: list[str]) -> None:
    total = sum(CASES_PER_FAMILY.values()) + sum(SAMPLED_PER_FAMILY.values())
    print(f"{len(close_calls)} of {total} configurations differ within the band of {BAND}: {close_calls}")
    assert len(close_calls) <= total // 100
