"""A caller's default device does not affect a call, which creates its tensors on the model's device."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

import pygen
from tests.generate.models import FAMILIES, encoder_decoder, hf_model

IDS = torch.tensor([[5, 6, 7, 5, 6], [8, 9, 8, 9, 8]])
CALLS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sampling": {"do_sample": True, "temperature": [0.5, 2.0], "top_p": 0.9},
    "copies": {"do_sample": True, "seed": 3, "num_return_sequences": 2},
    "beams": {"num_beams": 3, "early_stopping": True},
    "groups": {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.4},
    "constraints": {"num_beams": 3, "force_words_ids": [[7, 8]]},
    "lookup": {"prompt_lookup_num_tokens": 3},
    "assistant": {"assistant_model": hf_model("llama")},
    "bans": {"bad_words_ids": [[5], [6, 7]], "no_repeat_ngram_size": 2, "suppress_tokens": [4], "min_new_tokens": 2},
    "penalties": {"repetition_penalty": 1.3, "sequence_bias": [[[4], 1.0]], "presence_penalty": 0.5},
    "watermark": {"watermarking_config": {"greenlist_ratio": 0.5}},
    "allowed": {"prefix_allowed_tokens_fn": lambda batch_id, ids: [3, 4]},
    "decay": {"exponential_decay_length_penalty": (2, 1.1), "forced_bos_token_id": 4},
    "static": {"cache_implementation": "static"},
    "logprobs": {"output_logprobs": True, "top_logprobs": 2, "return_dict_in_generate": True},
}


@pytest.fixture
def meta() -> Iterator[None]:
    torch.set_default_device("meta")
    yield
    torch.set_default_device(None)


@pytest.fixture(params=CALLS)
def expected(request: pytest.FixtureRequest) -> tuple[dict[str, Any], Any]:
    return CALLS[request.param], _sequences(hf_model("llama"), **CALLS[request.param])


def test_calls_under_another_default_device(expected: tuple[dict[str, Any], Any], meta: None) -> None:
    settings, sequences = expected
    assert torch.equal(_sequences(hf_model("llama"), **settings), sequences)


@pytest.mark.parametrize("family", [*FAMILIES, "t5"])
def test_other_families(family: str) -> None:
    model = encoder_decoder(family) if family == "t5" else hf_model(family)
    expected = _sequences(model, num_beams=2, decoder_start_token_id=1)
    with torch.device("meta"):
        assert torch.equal(_sequences(model, num_beams=2, decoder_start_token_id=1), expected)


def _sequences(model: Any, **settings: Any) -> Any:
    torch.manual_seed(0)
    settings = {"do_sample": False, "max_new_tokens": 5, "pad_token_id": 0, "eos_token_id": 2, **settings}
    result = pygen.generate(model, IDS, **settings)
    return getattr(result, "sequences", result)
