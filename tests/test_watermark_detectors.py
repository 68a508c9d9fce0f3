"""The detectors: against transformers, their deliberate differences, and texts of a small model."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
import transformers
from scipy.stats import norm
from torch import Tensor
from transformers.generation import logits_process as theirs
from transformers.generation import watermarking as their_detectors

import pygen
from pygen.processors import watermark as ours
from tests.generate.models import VOCAB_SIZE, hf_model
from tests.helpers.releases import since

MODEL_CONFIG = SimpleNamespace(vocab_size=50, bos_token_id=1, decoder_start_token_id=2, is_encoder_decoder=False)
SCHEMES = [
    {"seeding_scheme": scheme, "context_width": width} for scheme in ("lefthash", "selfhash") for width in (1, 3)
]
LAYERS: dict[str, Any] = {"ngram_len": 3, "keys": list(range(100, 240, 7))}
SIZES: dict[str, Any] = {
    "sampling_table_size": 2**16,
    "sampling_table_seed": 0,
    "context_history_size": 1024,
    "device": "cpu",
}


# Green lists


@pytest.mark.parametrize("is_encoder_decoder", [False, True])
@pytest.mark.parametrize("fields", SCHEMES)
def test_counts_are_theirs(fields: dict[str, Any], is_encoder_decoder: bool) -> None:
    torch.manual_seed(0)
    model_config: Any = SimpleNamespace(**{**vars(MODEL_CONFIG), "is_encoder_decoder": is_encoder_decoder})
    mine: Any = pygen.WatermarkDetector(model_config, "cpu", fields)
    other: Any = their_detectors.WatermarkDetector(model_config, "cpu", transformers.WatermarkingConfig(**fields))
    for start in (1, 2, 3):
        ids = torch.randint(50, (3, 30))
        ids[:, 0] = start
        found, expected = mine(ids, return_dict=True), other(ids, return_dict=True)
        for name, value in vars(expected).items():
            if name not in ("p_value", "confidence"):
                assert (getattr(found, name) == value).all(), name
                assert getattr(found, name).dtype == value.dtype, name
        assert (mine(ids, z_threshold=0.5) == other(ids, z_threshold=0.5)).all()
        assert found.p_value == pytest.approx(norm.sf(found.z_score), rel=1e-12)
        assert found.confidence == pytest.approx(1 - found.p_value)


def test_p_value_where_transformers_is_off() -> None:
    if not since("5.23"):
        assert their_detectors.WatermarkDetector._compute_pval(cast(Any, None), 1.0) == pytest.approx(0.2645, abs=1e-4)
    detector: Any = pygen.WatermarkDetector(MODEL_CONFIG, "cpu", {"greenlist_ratio": 0.5})
    ids = torch.randint(50, (200, 26))  # 25 n-grams: 15 green ones are one standard deviation above the mean
    found = detector(ids, return_dict=True)
    assert found.p_value[found.num_green_tokens == 15] == pytest.approx(0.158655, abs=1e-6)


@pytest.mark.parametrize("fields", SCHEMES)
def test_repeated_ngrams_count_once_if_asked(fields: dict[str, Any]) -> None:
    periodic = torch.tensor([[5, 7] * 10])
    detectors: list[Any] = [
        pygen.WatermarkDetector(MODEL_CONFIG, "cpu", fields, ignore_repeated_ngrams=ignore) for ignore in (False, True)
    ]
    every, once = (detector(periodic, return_dict=True) for detector in detectors)
    width = fields["context_width"]
    assert every.num_tokens_scored == 20 - width + (fields["seeding_scheme"] == "selfhash")
    assert once.num_tokens_scored == 2
    assert once.num_green_tokens <= 2
    assert (every.num_green_tokens > 0) == (once.num_green_tokens > 0)


def test_ngrams_remembered_between_calls_change_nothing() -> None:
    torch.manual_seed(3)
    fields = {"seeding_scheme": "selfhash", "context_width": 2}
    forgetful: Any = pygen.WatermarkDetector(MODEL_CONFIG, "cpu", fields, max_cache_size=0)
    detector: Any = pygen.WatermarkDetector(MODEL_CONFIG, "cpu", fields)
    for _ in range(4):
        ids = torch.randint(6, (2, 40))
        assert (detector(ids, return_dict=True).z_score == forgetful(ids, return_dict=True).z_score).all()
    assert 0 < len(detector.processor._are_green_cache) <= 128
    assert not forgetful.processor._are_green_cache


@pytest.mark.parametrize(
    ("arguments", "call", "error", "message"),
    [
        (
            {"watermarking_config": LAYERS},
            {},
            TypeError,
            "`watermarking_config` must be a WatermarkingConfig or a dict of its fields, "
            "got SynthIDTextWatermarkingConfig",
        ),
        (
            {"watermarking_config": {"greenlist_ratio": 2}},
            {},
            ValueError,
            "`watermarking_config.greenlist_ratio` must be a number in [0, 1], got 2",
        ),
        (
            {"watermarking_config": {"greenlist_ratio": 1}},
            {},
            ValueError,
            "`greenlist_ratio` must be a number in (0, 1), got 1",
        ),
        ({"max_cache_size": -1}, {}, ValueError, "`max_cache_size` must be a 64-bit integer >= 0, got -1"),
        ({}, {"z_threshold": math.nan}, ValueError, "`z_threshold` must be a finite number, got nan"),
        (
            {},
            {"input_ids": torch.zeros(4)},
            ValueError,
            "`input_ids` must have shape (batch_size, length), got (4,)",
        ),
        (
            {"watermarking_config": {"context_width": 4}},
            {"input_ids": torch.tensor([[1, 2, 3, 4, 5]])},
            ValueError,
            "`input_ids` must have more than context_width=4 tokens a text, not counting a start token, got 4",
        ),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], call: dict[str, Any], error: type[Exception], message: str) -> None:
    given = {"model_config": MODEL_CONFIG, "device": "cpu", "watermarking_config": {}, **arguments}
    with pytest.raises(error) as caught:
        pygen.WatermarkDetector(**given)(**{"input_ids": torch.zeros(2, 9, dtype=torch.int64), **call})
    assert str(caught.value) == message


# Texts of a model


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def write(processor: Any, *, seed: int = 0, texts: int = 3, length: int = 50, **settings: Any) -> Tensor:
    """Returns the model's texts after one token, without the prompt."""
    prompt = torch.arange(3, 3 + texts)[:, None]
    settings = {"do_sample": True, "top_k": 0, "temperature": 1.5, "max_new_tokens": length, **settings}
    torch.manual_seed(seed)
    processors = [] if processor is None else [processor]
    written: Tensor = hf_model("llama").generate(prompt, logits_processor=processors, **settings)
    return written[:, 1:]


@pytest.mark.parametrize("settings", [{"do_sample": False}, {}, {"top_k": 5, "temperature": 0.7}])
@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        *[("WatermarkLogitsProcessor", {"vocab_size": VOCAB_SIZE, "device": "cpu", **fields}) for fields in SCHEMES],
        ("SynthIDTextWatermarkLogitsProcessor", {**LAYERS, **SIZES}),
    ],
)
def test_watermarked_texts_are_theirs(name: str, arguments: dict[str, Any], settings: dict[str, Any]) -> None:
    if not settings.get("do_sample", True):
        settings = {**settings, "top_k": None, "temperature": None}
    mine, other = (write(getattr(module, name)(**arguments), length=30, **settings) for module in (ours, theirs))
    assert torch.equal(mine, other)
    assert not torch.equal(mine, write(None, length=30, **settings))


@pytest.mark.parametrize("fields", SCHEMES)
def test_detector_separates_green_from_plain_texts(fields: dict[str, Any]) -> None:
    config = pygen.WatermarkingConfig(bias=6.0, **fields)
    detector: Any = pygen.WatermarkDetector(hf_model("llama").config, "cpu", config, ignore_repeated_ngrams=True)
    marked = detector(write(config.construct_processor(VOCAB_SIZE, "cpu")), return_dict=True)
    assert marked.prediction.all()
    assert (marked.p_value < 0.002).all()
    assert not detector(write(None)).any()


def test_detector_separates_synthid_from_plain_texts() -> None:
    config = pygen.SynthIDTextWatermarkingConfig(**LAYERS)
    processor = config.construct_processor(VOCAB_SIZE, "cpu")

    def texts(seed: int) -> tuple[Tensor, Tensor]:
        marked = write(config.construct_processor(VOCAB_SIZE, "cpu"), seed=seed, texts=40)
        return torch.cat([marked, write(None, seed=seed, texts=40)]), torch.arange(80) < 40

    ids, labels = texts(seed=1)
    g_values, mask = processor.compute_g_values(ids), processor.compute_context_repetition_mask(ids)
    torch.manual_seed(0)
    module: Any = pygen.BayesianDetectorModel(pygen.BayesianDetectorConfig(len(config.keys)))
    optimizer = torch.optim.Adam(module.parameters(), lr=0.05)
    for _ in range(60):
        _, loss = module(g_values, mask, labels, loss_batch_weight=0.001)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    module.eval()
    other = theirs.SynthIDTextWatermarkLogitsProcessor(**LAYERS, **SIZES)
    ids, labels = texts(seed=2)
    with torch.no_grad():
        for tokenizer in (SimpleNamespace(eos_token_id=0), SimpleNamespace(eos_token_id=VOCAB_SIZE)):
            (posterior,) = pygen.SynthIDTextWatermarkDetector(module, processor, tokenizer)(ids)
            (expected,) = their_detectors.SynthIDTextWatermarkDetector(module, other, tokenizer)(ids)
            assert torch.equal(posterior, expected)
    assert ((posterior > 0.5) == labels).all()
