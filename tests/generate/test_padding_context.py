"""Masked tokens are not context: with every processor, a padded row continues as it does alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pygen import SynthIDTextWatermarkingConfig, WatermarkingConfig
from tests.generate.models import hf_model
from tests.helpers.generation import generate_tokens

ROW = [44, 9]
OTHER = [11, 3, 22, 70]
PADDED = torch.tensor([[0, 0, *ROW], OTHER])
MASK = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
# Sequences that only a text with its padding contains.
AFTER_PADDING = {(0, 44, 9, token): 30.0 * (token % 2) for token in range(5, 95)}

SETTINGS: dict[str, dict[str, Any]] = {
    "selfhash": {"watermarking_config": WatermarkingConfig(bias=6.0, seeding_scheme="selfhash", context_width=3)},
    "lefthash": {"watermarking_config": WatermarkingConfig(bias=6.0, context_width=3)},
    "synthid": {"watermarking_config": SynthIDTextWatermarkingConfig(ngram_len=4, keys=[3, 5, 7])},
    "biases": {"sequence_bias": AFTER_PADDING},
    "bad words": {"bad_words_ids": [list(ids) for ids in AFTER_PADDING if ids[-1] % 3]},
    "ngrams": {"no_repeat_ngram_size": 1, "repetition_penalty": 1.5},
    "ngrams of the input": {"encoder_no_repeat_ngram_size": 3, "encoder_repetition_penalty": 0.7},
}


@pytest.mark.parametrize("search", [{}, {"num_beams": 3}, {"do_sample": True, "seed": 4}, {"custom_generate": "loop"}])
@pytest.mark.parametrize("name", SETTINGS)
def test_padding_is_not_context(name: str, search: dict[str, Any]) -> None:
    arguments: dict[str, Any] = {"max_new_tokens": 6, "pad_token_id": 0, **SETTINGS[name], **search}
    if "custom_generate" in search:
        arguments["custom_generate"] = loop
    model = hf_model("gpt2")
    alone = generate_tokens(model, torch.tensor([ROW]), attention_mask=torch.ones(1, 2, dtype=torch.int64), **arguments)
    in_batch = generate_tokens(model, PADDED, attention_mask=MASK, **arguments)
    assert in_batch[0, 4:].tolist() == alone[0, 2:].tolist()
    if name in ("selfhash", "synthid"):
        unmarked = {name: value for name, value in arguments.items() if name != "watermarking_config"}
        assert in_batch.tolist() != generate_tokens(model, PADDED, attention_mask=MASK, **unmarked).tolist()


def loop(model: Any, input_ids: Any, logits_processor: Any, stopping_criteria: Any, **kwargs: Any) -> Any:
    """A custom loop: greedy search without a cache."""
    mask = kwargs["attention_mask"]
    while not bool(stopping_criteria(input_ids, None).all()):
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        logits = model(input_ids=input_ids, attention_mask=mask, position_ids=positions).logits[:, -1]
        tokens = logits_processor(input_ids, logits).argmax(-1, keepdim=True)
        input_ids = torch.cat([input_ids, tokens], dim=1)
        mask = torch.cat([mask, torch.ones_like(tokens)], dim=1)
    return input_ids
