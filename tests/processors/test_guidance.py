"""Guidance: both classes against transformers, with models, with and without a cache."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from pygen import processors
from tests.generate.models import FAMILIES, hf_model

ROWS, VOCAB_SIZE = 2, 101


def sequence(length: int) -> Tensor:
    return torch.randint(0, VOCAB_SIZE, (ROWS, length), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("scale", [1.5, 3])
def test_batched(scale: float) -> None:
    scores = torch.randn(2 * ROWS, 7)
    result = processors.ClassifierFreeGuidanceLogitsProcessor(scale)(sequence(3), scores)
    assert torch.equal(result, transformers.ClassifierFreeGuidanceLogitsProcessor(scale)(sequence(3), scores))
    with pytest.raises(ValueError, match="`scores` must have two rows for each of `input_ids`, 4, got 3"):
        processors.ClassifierFreeGuidanceLogitsProcessor(scale)(sequence(3), scores[:3])


NEGATIVE: list[dict[str, Any]] = [
    {},
    {"unconditional_ids": sequence(4)},
    {"unconditional_ids": sequence(4), "unconditional_attention_mask": torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1]])},
]


@torch.no_grad()
@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("scale", [0.5, 1, 2.5])
@pytest.mark.parametrize("negative", range(len(NEGATIVE)))
@pytest.mark.parametrize("family", FAMILIES)
def test_unbatched(family: str, negative: int, scale: float, use_cache: bool) -> None:
    """Every row equals transformers' result for that row alone. Its positions are wrong with padding."""
    arguments = {"model": hf_model(family), "use_cache": use_cache}
    ours = processors.UnbatchedClassifierFreeGuidanceLogitsProcessor(scale, **arguments, **NEGATIVE[negative])
    prompts, mask = (NEGATIVE[negative].get(f"unconditional_{name}") for name in ("ids", "attention_mask"))
    theirs = []
    for row in range(ROWS):
        prompt = (
            None if prompts is None else prompts[row : row + 1] if mask is None else prompts[row][mask[row] > 0][None]
        )
        theirs.append(
            transformers.UnbatchedClassifierFreeGuidanceLogitsProcessor(scale, unconditional_ids=prompt, **arguments)
        )
    ids = sequence(8)
    for length in range(3, 8):
        scores = torch.randn(ROWS, VOCAB_SIZE, generator=torch.Generator().manual_seed(length))
        expected = [one(ids[row : row + 1, :length], scores[row : row + 1]) for row, one in enumerate(theirs)]
        torch.testing.assert_close(ours(ids[:, :length], scores), torch.cat(expected), rtol=1e-4, atol=1e-4)
    names = {"past_key_values" if name == "cache" else name for name in theirs[0].unconditional_context}
    assert ours.unconditional_context.keys() == names


@torch.no_grad()
def test_a_negative_prompt_serves_all_copies_of_its_prompt() -> None:
    def guide(unconditional_ids: Tensor) -> Tensor:
        processor = processors.UnbatchedClassifierFreeGuidanceLogitsProcessor(2.0, hf_model("llama"), unconditional_ids)
        for length in (5, 6):
            result = processor(sequence(6)[:, :length], torch.zeros(ROWS, VOCAB_SIZE))
        return result

    negative = sequence(4)[:1]
    torch.testing.assert_close(guide(negative), guide(negative.repeat(ROWS, 1)))
    with pytest.raises(ValueError, match="`unconditional_input_ids` must have a number of rows that divides"):
        guide(negative.repeat(3, 1))
