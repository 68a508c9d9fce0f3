"""The limit of reasoning: hand-checked rows, and calls with every search against the rule."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

import pygen
from pygen.processors import ThinkingBudgetLogitsProcessor
from tests.generate.models import VOCAB_SIZE, hf_model
from tests.helpers.generation import generate_output

START, END = [7], [8, 9]
PROMPT = [1, 2]


def forced_id(text: list[int], budget: int, start: list[int] | None, prompt_length: int = 2) -> int | None:
    """What the processor lets follow; None where it changes nothing."""
    processor = ThinkingBudgetLogitsProcessor(budget, END, start, prompt_length)
    scores = torch.randn(1, 12)
    shaped = processor(torch.tensor([text]), scores)
    if shaped.equal(scores):
        return None
    (kept,) = (shaped[0] > -math.inf).nonzero()[:, 0].tolist()
    assert shaped[0, kept] == 0
    return int(kept)


@pytest.mark.parametrize(
    ("text", "budget", "start", "expected"),
    [
        ([*PROMPT], 0, None, 8),
        ([*PROMPT, 3, 3], 3, None, None),
        ([*PROMPT, 3, 3, 3], 3, None, 8),
        ([*PROMPT, 3, 3, 8], 3, None, 9),
        ([*PROMPT, 3, 8], 2, None, 9),
        ([*PROMPT, 3, 8, 9], 2, None, None),
        ([*PROMPT, 8, 9, 3, 3, 3], 2, None, None),
        ([8, 9, 3, 3, 3], 2, None, 8),
        ([*PROMPT, 3, 3, 3], 2, START, None),
        ([1, 7, 3, 3], 2, START, 8),
        ([1, 7, 3], 2, START, None),
        ([*PROMPT, 3, 7, 4], 2, START, None),
        ([*PROMPT, 3, 7, 4, 4], 2, START, 8),
        ([7, 8, 9, 3, 3], 2, START, None),
        ([*PROMPT, 7, 3, 8, 9, 7, 4, 4], 2, START, 8),
        ([1, 7, 3, 8, 8], 2, START, 9),
    ],
)
def test_rows_by_hand(text: list[int], budget: int, start: list[int] | None, expected: int | None) -> None:
    assert forced_id(text, budget, start) == expected


def test_rows_are_independent() -> None:
    processor = ThinkingBudgetLogitsProcessor(1, END, START, 2)
    ids = torch.tensor([[1, 7, 3, 3], [1, 2, 3, 3], [7, 2, 3, 8]])
    together = processor(ids, scores := torch.randn(3, 12))
    for row in range(3):
        assert together[row : row + 1].equal(processor(ids[row : row + 1], scores[row : row + 1]))


SEARCHES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sampling": {"do_sample": True, "seed": 3},
    "beams": {"num_beams": 3},
    "sampled beams": {"num_beams": 3, "do_sample": True, "seed": 1},
    "drafts": {"prompt_lookup_num_tokens": 3},
    "sampled drafts": {"prompt_lookup_num_tokens": 3, "do_sample": True, "seed": 2},
}


@pytest.mark.parametrize("name", SEARCHES)
def test_every_search_keeps_to_the_budget(name: str) -> None:
    model, budget = hf_model("llama"), 4
    prompts = torch.tensor([[1, 7, 3, 1, 7, 3], [2, 2, 4, 2, 2, 4]])
    settings = {"max_new_tokens": 12, "thinking_budget": budget, "thinking_end": END, **SEARCHES[name]}
    output = generate_output(model, prompts, **settings, logits_processor=[_Ban([8, 9])], return_dict_in_generate=True)
    for text in output.sequences[:, prompts.shape[1] :].tolist():
        assert text[budget : budget + 2] == END
        assert 8 not in text[:budget]


class _Ban:
    """Bans ids until they are forced, so that only the budget writes the marker."""

    def __init__(self, ids: list[int]) -> None:
        self._ids = ids

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        forced = torch.isinf(scores).sum(1, keepdim=True) == VOCAB_SIZE - 1
        banned = scores.clone()
        banned[:, self._ids] = -math.inf
        return torch.where(forced, scores, banned)

    def clone(self) -> _Ban:
        return self


def test_a_batch_follows_each_prompts_budget() -> None:
    model = hf_model("llama")
    prompts = [{"input_ids": [1, 2, 3], "thinking_budget": n, "thinking_end": [11]} for n in range(5)]
    for n, result in enumerate(pygen.generate_batch(model, prompts, rows=2, max_new_tokens=6)):
        assert 11 in result.token_ids[: n + 1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"thinking_budget": -1}, "`thinking_budget` must be a 64-bit integer >= 0"),
        ({"thinking_budget": 3}, "needs `thinking_end`, or `tokenizer=` with a token </think>"),
        ({"thinking_budget": 3, "thinking_end": "</think>"}, "needs the model's tokenizer"),
        ({"thinking_budget": 3, "thinking_end": []}, "`thinking_end` must be a non-empty"),
        ({"thinking_budget": 3, "thinking_end": [VOCAB_SIZE]}, "ids below the vocabulary size"),
    ],
)
def test_refusals(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pygen.generate(hf_model("llama"), torch.tensor([[1, 2]]), max_new_tokens=5, **settings)


def test_markers_come_from_the_tokenizer() -> None:
    class Words:
        """A tokenizer with the two markers, and words of one letter."""

        def get_vocab(self) -> dict[str, int]:
            return {"<think>": 7, "</think>": 8, "a": 3}

    model, prompt = hf_model("llama"), torch.tensor([[1, 7, 3]])
    words: Any = Words()
    forced = pygen.generate(model, prompt, max_new_tokens=6, thinking_budget=2, tokenizer=words)
    assert isinstance(forced, torch.Tensor)
    assert 8 in forced[0, 3:6].tolist()
    free = pygen.generate(model, torch.tensor([[1, 2, 3]]), max_new_tokens=6, thinking_budget=0, tokenizer=words)
    plain = pygen.generate(model, torch.tensor([[1, 2, 3]]), max_new_tokens=6)
    assert isinstance(free, torch.Tensor)
    assert isinstance(plain, torch.Tensor)
    assert free.equal(plain), "without `<think>` there is no reasoning to end"
