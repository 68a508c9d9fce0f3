"""Rows that come and go on a GPU: tokens of separate calls, one capture, no wait for the device at a step."""

from __future__ import annotations

import copy
import random
from typing import Any

import pytest
import torch

import pygen
from tests.batch.alone import differences
from tests.batch.models import small_model

FAMILIES = ("llama", "gpt2", "gemma3", "mistral")


def prompts(count: int) -> list[dict[str, Any]]:
    source = random.Random(1)
    return [
        {
            "input_ids": [source.randrange(1, 60) for _ in range(source.randrange(1, 40))],
            "max_new_tokens": source.randrange(1, 40),
            "do_sample": source.random() < 0.8,
            "seed": number,
            "top_k": source.choice((0, 20)),
            "repetition_penalty": source.choice((1.0, 1.3)),
            "output_logprobs": True,
        }
        for number in range(count)
    ]


@pytest.mark.parametrize("runtime", ["graph", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_rows_have_the_tokens_of_separate_calls_on_the_cpu(family: str, runtime: str) -> None:
    model, work = copy.deepcopy(small_model(family)).cuda(), prompts(30)
    results = [*pygen.generate_batch(model, work, rows=4, max_length=80, runtime=runtime)]
    for prompt, result in zip(work, results, strict=True):
        assert differences(small_model(family), prompt, [result]) == []


def test_memory_of_a_batch_is_given_back() -> None:
    model = copy.deepcopy(small_model("llama")).cuda()
    list(pygen.generate_batch(model, prompts(4), rows=2))
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    for _ in range(3):
        list(pygen.generate_batch(model, prompts(4), rows=2))
    torch.cuda.synchronize()
    assert torch.cuda.memory_allocated() <= before + 2**20
