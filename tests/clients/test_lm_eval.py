"""lm-evaluation-harness: `generate_until` of its transformers model returns the same with and without a patch."""

from __future__ import annotations

from typing import Any

import pytest
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

import pygen
from tests.clients import models


def answers(model: Any, settings: dict[str, Any]) -> list[str]:
    lm = HFLM(pretrained=model, tokenizer=models.tokenizer(), batch_size=2, max_length=40)
    prompts = ["w5 w6 w7", "w8 w9", "w10 w11 w12 w13", "w3"]
    requests = [
        Instance("generate_until", {}, (prompt, dict(settings)), number) for number, prompt in enumerate(prompts)
    ]
    result: list[str] = lm.generate_until(requests, disable_tqdm=True)
    return result


@pytest.mark.parametrize("settings", [{"until": ["\n\n"]}, {"until": ["w64", "w2"]}, {"until": [], "num_beams": 3}])
def test_generate_until(settings: dict[str, Any], calls: list[Any]) -> None:
    settings = {"max_gen_toks": 12, **settings}
    model = models.model()
    expected = answers(model, settings)
    with pygen.patch(model):
        assert answers(model, settings) == expected
    assert len(calls) == 2 and all(expected)
