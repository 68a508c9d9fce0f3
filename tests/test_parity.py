"""The tokens, scores and logits of `pygen.generate` against `transformers`, over generated configurations."""

from __future__ import annotations

import random
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

from pygen import generate, rng
from tests.generate.conftest import one_thread  # noqa: F401
from tests.generate.models import ENCODER_DECODERS, FAMILIES, VOCAB_SIZE, encoder_decoder, hf_model
from tests.helpers.generation import generate_output, generate_tokens

ALL_FAMILIES = (*FAMILIES, "t5", "bart")
CASES_PER_FAMILY = 384
CASES_PER_TEST = 16

# Two runs may choose different tokens only if the two best race scores (scores, for a greedy row) are this close.
# float32 scores up to about 30 carry an error of some 4e-6 each after a few operations. T5's scores are larger.
BAND = {"t5": 2e-4}
SMALLEST_BAND = 2e-5
TOLERANCE = 2e-4


def make_case(family: str, number: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns (inputs, settings) of one configuration, a function of its number."""
    draw = random.Random(f"{family} {number}")
    batch_size, length = draw.choice([1, 1, 2, 3, 4]), draw.randint(1, 7)
    ids = torch.tensor([[draw.randrange(4, VOCAB_SIZE) for _ in range(length)] for _ in range(batch_size)])
    inputs: dict[str, Any] = {"input_ids": ids}
    settings: dict[str, Any] = {"pad_token_id": draw.choice([0, 0, 3])}

    padded = length > 1 and draw.random() < 0.35
    if padded:
        lengths = [draw.randint(1, length) for _ in range(batch_size)]
        mask = torch.tensor([[0] * (length - n) + [1] * n for n in lengths])
        if family in ENCODER_DECODERS:
            mask = mask.flip(1)
        inputs["input_ids"] = ids.masked_fill(mask == 0, settings["pad_token_id"])
        if draw.random() < 0.6:
            inputs["attention_mask"] = mask
    elif draw.random() < 0.3:
        inputs["attention_mask"] = torch.ones_like(ids)

    eos_kind = draw.choice(["none", "one", "one", "several"])
    if eos_kind == "one":
        settings["eos_token_id"] = draw.randrange(VOCAB_SIZE)
    elif eos_kind == "several":
        settings["eos_token_id"] = draw.sample(range(VOCAB_SIZE), draw.randint(2, 12))
    if draw.random() < 0.15 and eos_kind != "none" and "attention_mask" in inputs:
        del settings["pad_token_id"]
    if draw.random() < 0.5:
        settings["max_new_tokens"] = draw.choice([1, 2, 5, 9, 12])
    else:
        settings["max_length"] = length + draw.choice([1, 4, 10])
    if draw.random() < 0.3:
        settings["min_new_tokens"] = draw.randint(0, 4)
    elif draw.random() < 0.3:
        settings["min_length"] = draw.randint(0, length + 3)
    if draw.random() < 0.3:
        settings["suppress_tokens"] = draw.sample(range(VOCAB_SIZE), 30)
    if draw.random() < 0.3:
        settings["begin_suppress_tokens"] = draw.sample(range(VOCAB_SIZE), 40)
    if not padded and draw.random() < 0.4:
        settings["repetition_penalty"] = draw.choice([0.7, 1.2, 2.0])
    if not padded and draw.random() < 0.25:
        settings["no_repeat_ngram_size"] = draw.choice([1, 2, 3])
    if draw.random() < 0.2:
        settings["use_cache"] = False
    if draw.random() < 0.15:
        settings["renormalize_logits"] = True
    if draw.random() < 0.7:
        settings["do_sample"] = True
        settings["num_return_sequences"] = draw.choice([1, 1, 2, 3])
        settings |= _warpers(draw)
    if draw.random() < 0.5:
        settings |= {"return_dict_in_generate": True, "output_scores": True, "output_logits": draw.random() < 0.5}
        settings["output_hidden_states"] = draw.random() < 0.3
    if family in ENCODER_DECODERS:
        settings["decoder_start_token_id"] = draw.choice([1, 2])
        if "max_length" in settings:
            settings["max_length"] = max(2, settings["max_length"] - length + 1)
    return inputs, settings


def _warpers(draw: random.Random) -> dict[str, Any]:
    choices: dict[str, list[Any]] = {
        "temperature": [0.3, 0.7, 1.5],
        "top_k": [0, 1, 5, 200],
        "top_p": [0.0, 0.5, 0.9, 1.0],
        "min_p": [0.0, 0.05, 0.3, 1.0],
        "typical_p": [0.2, 0.6, 0.95],
        "epsilon_cutoff": [0.003, 0.02],
        "eta_cutoff": [0.003, 0.02],
        "top_h": [0.3, 0.7, 0.95],  # at 1 the rounding of a sum decides the last token
    }
    rates = {"temperature": 0.6, "top_k": 0.5, "top_p": 0.5}
    return {name: draw.choice(values) for name, values in choices.items() if draw.random() < rates.get(name, 0.15)}


def race_gap(scores: Tensor, row: int, ours: int, theirs: int, settings: dict[str, Any], seed: int, step: int) -> float:
    """Returns the distance of two tokens in the race of `step`, by transformers' scores."""
    race = scores[row].double()
    if settings.get("do_sample"):
        generator = torch.Generator().manual_seed(seed)
        for _ in range(step + 1):
            noise = rng.torch_exponential(scores.shape[0], scores.shape[1], generator, scores.device)
        race = race - noise[row].double().log()
    return abs(float(race[ours] - race[theirs]))


def first_difference(ours: Tensor, theirs: Tensor) -> tuple[int, int] | None:
    """Returns (column, row) of the earliest difference, which causes the later ones."""
    width = min(ours.shape[1], theirs.shape[1])
    places = (ours[:, :width] != theirs[:, :width]).nonzero()
    if len(places) == 0:
        return None
    column = int(places[:, 1].min())
    return column, int(places[places[:, 1] == column][0, 0])


@pytest.fixture(scope="module")
def within_band() -> list[str]:
    return []


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("block", range(CASES_PER_FAMILY // CASES_PER_TEST))
@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_same_as_transformers(family: str, block: int, within_band: list[str]) -> None:
    seq2seq = family in ENCODER_DECODERS
    model = encoder_decoder(family) if seq2seq else hf_model(family)
    for number in range(block * CASES_PER_TEST, (block + 1) * CASES_PER_TEST):
        inputs, settings = make_case(family, number)
        about = f"{family} case {number}: {settings}"
        torch.manual_seed(number)
        expected = model.generate(**inputs, **settings)
        after = torch.get_rng_state()
        torch.manual_seed(number)
        actual: Any = generate(model, **inputs, **settings)

        returns_dict = "return_dict_in_generate" in settings
        theirs = expected.sequences if returns_dict else expected
        ours = actual.sequences if returns_dict else actual
        assert ours.dtype == torch.int64, about
        difference = first_difference(ours, theirs)
        steps = None
        if difference is not None:
            column, row = difference
            steps = column - (1 if seq2seq else inputs["input_ids"].shape[1])
            detailed = settings | {"return_dict_in_generate": True, "output_scores": True}
            torch.manual_seed(number)
            scores = model.generate(**inputs, **detailed).scores[steps]
            gap = race_gap(scores, row, int(ours[row, column]), int(theirs[row, column]), settings, number, steps)
            assert gap <= BAND.get(family, SMALLEST_BAND), f"{about}: row {row} step {steps} differs by {gap}"
            within_band.append(about)
        else:
            assert ours.shape == theirs.shape, about
            assert torch.equal(torch.get_rng_state(), after), about
        if returns_dict:
            compare_scores(actual.scores, expected.scores, steps, about)
            if settings["output_logits"]:
                compare_scores(actual.logits, expected.logits, steps, about)
            if settings["output_hidden_states"]:
                name = "decoder_hidden_states" if seq2seq else "hidden_states"
                mine, other = (tuple(layers[-1] for layers in output[name]) for output in (actual, expected))
                compare_scores(mine, other, steps, about)


def compare_scores(ours: tuple[Tensor, ...], theirs: tuple[Tensor, ...], steps: int | None, about: str) -> None:
    for step, (x, y) in enumerate(zip(ours, theirs, strict=steps is None)):
        if step == steps:
            return
        assert x.dtype == torch.float32
        assert torch.equal(x.isneginf(), y.isneginf()), f"{about}: step {step} keeps other tokens"
        largest = float(y[y.isfinite()].abs().max())
        atol = TOLERANCE * (1 + largest)
        torch.testing.assert_close(x, y, rtol=0, atol=atol, msg=lambda text: f"{about}: {text}")


def test_differences_within_the_band_are_rare(within_band: list[str]) -> None:
    assert len(within_band) <= 3, within_band


@pytest.mark.parametrize("family", FAMILIES)
def test_attentions_and_hidden_states(family: str) -> None:
    model = hf_model(family)
    model.set_attn_implementation("eager")
    try:
        ids = torch.randint(4, VOCAB_SIZE, (2, 5), generator=torch.Generator().manual_seed(1))
        settings: dict[str, Any] = {
            "max_new_tokens": 4,
            "do_sample": True,
            "num_return_sequences": 2,
            "return_dict_in_generate": True,
            "output_attentions": True,
            "output_hidden_states": True,
        }
        torch.manual_seed(0)
        expected = model.generate(ids, **settings)
        torch.manual_seed(0)
        actual = generate_output(model, ids, **settings)
    finally:
        model.set_attn_implementation("sdpa")
    assert torch.equal(actual.sequences, expected.sequences)
    for name in ("attentions", "hidden_states"):
        ours, theirs = actual[name], expected[name]
        assert len(ours) == len(theirs) == 4
        for x, y in zip(ours, theirs, strict=True):
            assert [t.shape for t in x] == [t.shape for t in y]
            for a, b in zip(x, y, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    assert actual.past_key_values.get_seq_length() == expected.past_key_values.get_seq_length()


@pytest.mark.parametrize("family", FAMILIES)
def test_continuing_from_a_cache(family: str) -> None:
    model = hf_model(family)
    ids = torch.randint(4, VOCAB_SIZE, (2, 5), generator=torch.Generator().manual_seed(2))
    whole = generate_tokens(model, ids, max_new_tokens=8)
    first = generate_output(model, ids, max_new_tokens=3, return_dict_in_generate=True)
    again = generate_tokens(model, first.sequences, max_new_tokens=5, past_key_values=first.past_key_values)
    assert torch.equal(again, whole)


def test_default_length_and_warning() -> None:
    model = hf_model("llama")
    ids = torch.tensor([[5, 6, 7]])
    with warnings.catch_warnings(record=True) as ours:
        warnings.simplefilter("always")
        actual = generate_tokens(model, ids)
    assert torch.equal(actual, model.generate(ids, max_new_tokens=20))
    assert [w.category for w in ours] == [UserWarning]
