"""The logits' width is the number of tokens; the config's `vocab_size` does not matter."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.generate.test_candidates import other_vocabulary
from tests.helpers.generation import generate_tokens

IDS = torch.tensor([[5, 99, 7, 60, 5, 99, 60, 5, 99]])


class OfTwoWidths(nn.Module):
    """Embeds 100 tokens, has `head` logits, and a config with `vocab_size` 50."""

    def __init__(self, head: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(100, 16)
        self.head = nn.Linear(16, head)
        self.config = SimpleNamespace(vocab_size=50)

    def forward(self, input_ids: Tensor) -> Tensor:
        scores: Tensor = self.head(self.embedding(input_ids))
        return 3 * scores


@pytest.mark.parametrize("head", [50, 100])
@pytest.mark.parametrize("settings", [{}, {"do_sample": True, "seed": 2}, {"bad_words_ids": [[45]]}], ids=str)
def test_prompt_lookup(head: int, settings: dict[str, Any]) -> None:
    call: dict[str, Any] = {"do_sample": False, "max_new_tokens": 12, "pad_token_id": 0, **settings}
    drafted = generate_tokens(OfTwoWidths(head), IDS, prompt_lookup_num_tokens=3, **call)
    assert torch.equal(drafted, generate_tokens(OfTwoWidths(head), IDS, **call))


@pytest.mark.parametrize("head", [50, 100])
def test_prompt_lookup_with_draws_of_torch(head: int) -> None:
    """The lookup of tokens that transformers forbids in a draft uses scores of the model's width."""
    call: dict[str, Any] = {
        "do_sample": True,
        "top_k": 1,
        "max_new_tokens": 12,
        "pad_token_id": 0,
        "bad_words_ids": [[45]],
    }
    drafted = generate_tokens(OfTwoWidths(head), IDS, prompt_lookup_num_tokens=3, **call)
    assert torch.equal(drafted, generate_tokens(OfTwoWidths(head), IDS, **call))


@pytest.mark.parametrize("columns", [-7, 8])
@pytest.mark.parametrize("whose", ["model", "assistant_model"])
def test_another_tokenizer(whose: str, columns: int) -> None:
    """Heads with more columns than the config's `vocab_size`, and with fewer than the tokenizer has tokens."""
    model, prompt, drafts = other_vocabulary()
    resized = copy.deepcopy(model if whose == "model" else drafts["assistant_model"])
    weight = resized.lm_head.weight.data
    resized.lm_head.weight.data = torch.cat([weight, weight.new_zeros(8, 16)])[: len(weight) + columns]
    if whose == "model":
        model = resized
    else:
        drafts["assistant_model"] = resized
    call: dict[str, Any] = {"do_sample": True, "top_k": 1, "max_new_tokens": 20, "pad_token_id": 0}
    assert torch.equal(generate_tokens(model, prompt, **call, **drafts), generate_tokens(model, prompt, **call))
