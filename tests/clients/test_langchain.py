"""langchain-huggingface: its pipeline returns the same text with a patched model as without a patch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from langchain_huggingface import HuggingFacePipeline
from transformers import pipeline

import pygen
from tests.clients import models


@pytest.mark.parametrize("settings", [{"do_sample": False}, {"do_sample": True, "top_k": 20}])
def test_pipeline(settings: dict[str, Any], calls: list[Any]) -> None:
    model, tokenizer = models.model(), models.tokenizer()
    chain = HuggingFacePipeline(
        pipeline=pipeline("text-generation", model=model, tokenizer=tokenizer, max_new_tokens=8, **settings)
    )

    def answers() -> list[Any]:
        torch.manual_seed(0)
        prompts = ["w5 w6 w7", "w8 w9"]
        return [chain.invoke(prompts[0]), *chain.batch(prompts), "".join(chain.stream(prompts[1]))]

    expected = answers()
    with pygen.patch(model):
        assert answers() == expected
    assert len(calls) >= 3 and all(expected)
