"""Sizes that exceed any memory raise an error at once, which names the responsible settings."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import pygen
from tests.generate.models import hf_model
from tests.helpers.generation import generate_tokens

IDS = torch.tensor([[5, 6, 7], [8, 9, 10]])
HUGE = 10**12


@pytest.mark.parametrize(
    "settings",
    [
        {"num_return_sequences": HUGE, "do_sample": True},
        {"num_beams": HUGE},
        {"num_beams": HUGE, "num_beam_groups": HUGE, "diversity_penalty": 0.5},
        {"num_beams": HUGE, "force_words_ids": [[5]]},
        {"top_logprobs": HUGE, "output_logprobs": True, "return_dict_in_generate": True},
    ],
    ids=lambda settings: "-".join(settings),
)
def test_want_of_memory_names_the_settings(settings: dict[str, Any]) -> None:
    model, name = hf_model("llama"), next(iter(settings))
    expected = generate_tokens(model, IDS, max_new_tokens=3, pad_token_id=0)
    with pytest.raises(MemoryError, match=f"not enough memory for .*`{name}`={HUGE}.*, `max_new_tokens`=3, 2 prompts"):
        pygen.generate(model, IDS, **{"max_new_tokens": 3, "pad_token_id": 0, **settings})
    assert torch.equal(generate_tokens(model, IDS, max_new_tokens=3, pad_token_id=0), expected)


def test_the_models_own_want_of_memory_keeps_its_kind() -> None:
    def fail(error: Exception) -> Any:
        def processor(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            raise error

        return [processor]

    for error in (torch.OutOfMemoryError("CUDA out of memory"), MemoryError("no")):
        with pytest.raises(type(error), match=f"`max_new_tokens`=3, 2 prompts of 3 ids: {error}"):
            pygen.generate(hf_model("llama"), IDS, max_new_tokens=3, logits_processor=fail(error))
    with pytest.raises(RuntimeError, match="^something else$"):
        pygen.generate(hf_model("llama"), IDS, max_new_tokens=3, logits_processor=fail(RuntimeError("something else")))


def test_huge_settings_that_need_no_memory() -> None:
    plain = generate_tokens(hf_model("llama"), IDS, max_new_tokens=3, pad_token_id=0)
    for settings in (
        {"prompt_lookup_num_tokens": 10**15},
        {"prompt_lookup_num_tokens": 2, "max_matching_ngram_size": 10**15},
        {"assistant_early_exit": 1, "num_assistant_tokens": 10**15},
        {"no_repeat_ngram_size": 10**15},
        {"encoder_no_repeat_ngram_size": 10**15},
        {"prefill_chunk_size": 10**15},
        {"watermarking_config": pygen.WatermarkingConfig(seeding_scheme="selfhash", context_width=10**15)},
    ):
        assert torch.equal(generate_tokens(hf_model("llama"), IDS, max_new_tokens=3, pad_token_id=0, **settings), plain)
