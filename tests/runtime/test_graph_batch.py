"""The captured forward of `generate_batch` and `Engine`: rows come and go, with the tokens of eager rows."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

import pygen
from pygen.backends import BackendError
from tests.batch.alone import differences
from tests.batch.models import small_model

FAMILIES = ("llama", "gpt2", "mistral")


def prompts(count: int, seed: int) -> list[dict[str, Any]]:
    source = random.Random(seed)
    return [
        {
            "input_ids": [source.randrange(1, 60) for _ in range(source.randrange(1, 24))],
            "max_new_tokens": source.randrange(1, 24),
            "do_sample": source.random() < 0.8,
            "seed": number,
            "top_p": source.choice((1.0, 0.8)),
            "repetition_penalty": source.choice((1.0, 1.3)),
            "bad_words_ids": source.choice((None, [[5], [6, 7]])),
        }
        for number in range(count)
    ]


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_in_one_capture_have_the_tokens_of_separate_calls(family: str, capture: Any, small_models: None) -> None:
    model, work = small_model(family), prompts(24, seed=1)
    results = [*pygen.generate_batch(model, work, rows=3, max_length=64, runtime="graph", prefill_chunk_size=7)]
    assert capture.made == 1
    for prompt, result in zip(work, results, strict=True):
        assert differences(model, prompt, [result]) == []


def test_a_longer_prompt_makes_a_larger_cache_and_another_capture(capture: Any, small_models: None) -> None:
    model = small_model("llama")
    work = [{"input_ids": [1 + n % 50 for n in range(length)], "max_new_tokens": 9} for length in (3, 5, 90, 4)]
    results = [*pygen.generate_batch(model, work, rows=2, runtime="graph")]
    assert capture.made == 2
    for prompt, result in zip(work, results, strict=True):
        assert differences(model, prompt, [result]) == []


def test_rows_move_back_once_the_columns_are_full(capture: Any, small_models: None) -> None:
    """So many steps that the columns of one capture are used several times."""
    model = small_model("llama")
    work = [{"input_ids": [1 + n % 50, 2], "max_new_tokens": 12, "seed": n} for n in range(40)]
    results = [*pygen.generate_batch(model, work, rows=2, do_sample=True, runtime="graph")]
    assert capture.made == 1
    for prompt, result in zip(work, results, strict=True):
        assert differences(model, {**prompt, "do_sample": True}, [result]) == []


def test_an_engine_fills_empty_slots_later(capture: Any, small_models: None) -> None:
    model = small_model("gpt2")
    with pygen.Engine(model, rows=4, runtime="graph", max_new_tokens=20) as engine:
        first = engine.submit([1, 2, 3], max_new_tokens=3)
        assert first.result().finish_reason == "length"
        # Alone in four slots for longer than the model has positions.
        alone = [engine.submit([4, 5]).result() for _ in range(8)]
    assert {tuple(result.token_ids) for result in alone} == {tuple(alone[0].token_ids)}
    assert differences(model, {"input_ids": [4, 5], "max_new_tokens": 20}, alone[:1]) == []


def test_without_a_gpu_a_capture_is_refused_with_the_reason() -> None:
    with pytest.raises(BackendError, match="needs a CUDA model"):
        pygen.generate_batch(small_model("llama"), [[1]], runtime="graph")
    with pytest.raises(ValueError, match="`runtime` must be one of"):
        pygen.Engine(small_model("llama"), runtime="fast")
    assert torch.is_grad_enabled()
