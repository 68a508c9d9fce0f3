"""`pygen.generate` against transformers on every device of this machine: the CPU, and a GPU if present."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from tests.generate.against_transformers import assert_both_same
from tests.generate.models import FAMILIES, encoder_decoder, hf_model

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
CALLS: dict[str, dict[str, Any]] = {
    "greedy": {"do_sample": False},
    "penalties": {"do_sample": False, "repetition_penalty": 1.3, "no_repeat_ngram_size": 2},
    "sampling": {"do_sample": True, "temperature": 0.8, "top_k": 20, "top_p": 0.9},
    "sampling without filters": {"do_sample": True, "top_k": 0},
    "beams": {"num_beams": 4, "num_return_sequences": 2},
    "beam sampling": {"num_beams": 3, "do_sample": True, "top_k": 30},
    "scores": {"do_sample": True, "top_k": 5, "output_scores": True, "return_dict_in_generate": True},
}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("call", CALLS)
def test_decoders(device: str, family: str, call: str) -> None:
    model = copy.deepcopy(hf_model(family)).to(device)
    input_ids = torch.randint(1, 101, (3, 7), generator=torch.Generator().manual_seed(4)).to(device)
    mask = torch.ones_like(input_ids)
    mask[0, :2] = 0
    settings = {"max_new_tokens": 12, "eos_token_id": [5, 9], "pad_token_id": 4}
    assert_both_same(model, input_ids, attention_mask=mask, seed=11, **settings, **CALLS[call])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("call", ["greedy", "sampling", "beams"])
def test_encoder_decoders(device: str, call: str) -> None:
    model = copy.deepcopy(encoder_decoder("t5")).to(device)
    input_ids = torch.randint(1, 101, (3, 7), generator=torch.Generator().manual_seed(4)).to(device)
    assert_both_same(
        model, input_ids, seed=11, max_new_tokens=10, eos_token_id=3, decoder_start_token_id=1, **CALLS[call]
    )


@pytest.mark.parametrize("device", DEVICES)
def test_assisted(device: str) -> None:
    model, assistant = (copy.deepcopy(hf_model("llama")).to(device) for _ in range(2))
    input_ids = torch.randint(1, 101, (1, 7), generator=torch.Generator().manual_seed(4)).to(device)
    for do_sample in (False, True):
        settings = {"max_new_tokens": 12, "do_sample": do_sample, "pad_token_id": 4}
        assert_both_same(model, input_ids, seed=3, assistant_model=assistant, **settings)
