"""The list: its order, its keywords, foreign processors in it, and foreign lists that contain it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from pygen import processors
from tests.generate.models import hf_model

IDS, SCORES = torch.tensor([[1, 2]]), torch.tensor([[4.0, 2.0, 1.0, -2.0]])
BOTH = pytest.mark.parametrize("package", [processors, transformers])


class AddsBias:
    def __call__(self, input_ids: Tensor, scores: Tensor, bias: float) -> Tensor:
        return scores + bias


def halved(input_ids: Tensor, scores: Tensor) -> Tensor:
    return scores / 2


@BOTH
def test_order_keywords_and_mixtures(package: Any) -> None:
    mixture = [
        transformers.RepetitionPenaltyLogitsProcessor(2.0),
        halved,
        AddsBias(),
        processors.TopKLogitsWarper(3),
        transformers.TemperatureLogitsWarper(0.5),
    ]
    result = package.LogitsProcessorList(mixture)(IDS, SCORES, bias=1.0)
    assert result.tolist() == [[6.0, 3.0, 2.5, -torch.inf]]
    assert SCORES.tolist() == [[4.0, 2.0, 1.0, -2.0]]


@BOTH
def test_a_missing_keyword(package: Any) -> None:
    with pytest.raises(ValueError, match="bias"):
        package.LogitsProcessorList([AddsBias()])(IDS, SCORES)


@BOTH
def test_an_empty_list_returns_the_scores(package: Any) -> None:
    assert package.LogitsProcessorList()(IDS, SCORES, unused=1) is SCORES


def test_transformers_generates_with_these_processors() -> None:
    def generate(package: Any) -> Tensor:
        made = [
            package.NoRepeatNGramLogitsProcessor(2),
            package.RepetitionPenaltyLogitsProcessor(1.3),
            package.SequenceBiasLogitsProcessor({(5,): 3.0, (5, 7): 4.0}),
            package.TemperatureLogitsWarper(0.8),
            package.TopKLogitsWarper(9),
        ]
        model = hf_model("llama")
        torch.manual_seed(3)
        ids = torch.tensor([[5, 6, 7], [8, 9, 5]])
        settings: dict[str, Any] = {"do_sample": True, "top_k": 0, "max_new_tokens": 12, "pad_token_id": 0}
        texts: Tensor = model.generate(ids, logits_processor=package.LogitsProcessorList(made), **settings)
        return texts

    assert torch.equal(generate(processors), generate(transformers))
