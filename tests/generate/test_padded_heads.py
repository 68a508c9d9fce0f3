"""Assistants with the model's tokenizer but a head padded to another width, as Qwen2.5 has."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pygen.generate import generate
from tests.generate.models import VOCAB_SIZE, encoder_decoder, hf_model
from tests.helpers.generation import generate_tokens

# 99 exceeds the narrow assistants' heads. It is in the prompt and, because of the bias, in the text.
IDS = torch.tensor([[5, 17, 99, 8, 9, 61], [0, 0, 40, 99, 7, 12]])
CALL: dict[str, Any] = {
    "attention_mask": (IDS > 0).long(),
    "max_new_tokens": 14,
    "pad_token_id": 0,
    "sequence_bias": [[[99], 8.0], [[95], 8.0]],
}

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def padded(model: Any, width: int) -> Any:
    """Returns the model with another width of head and embeddings."""
    helper = copy.deepcopy(model)
    helper.resize_token_embeddings(width, mean_resizing=False)
    return helper


@pytest.mark.parametrize("width", [90, 128])
@pytest.mark.parametrize(
    "settings",
    [{}, {"do_sample": True, "seed": 3}, {"do_sample": True, "seed": 3, "temperature": [0.0, 1.5], "top_k": 40}],
    ids=["greedy", "seed", "rows"],
)
@pytest.mark.parametrize("name", ["llama", "t5"])
def test_drafts_change_no_token(name: str, settings: dict[str, Any], width: int) -> None:
    model = encoder_decoder(name) if name == "t5" else hf_model(name)
    call = CALL | settings | ({"decoder_start_token_id": 1} if name == "t5" else {})
    call["repetition_penalty"] = 1.5
    expected = generate_tokens(model, IDS, **call)
    assert (expected[:, 6 if name == "llama" else 0 :] >= 90).any()
    assert torch.equal(generate_tokens(model, IDS, assistant_model=padded(model, width), **call), expected)


def test_tokens_of_both_heads_are_drafted() -> None:
    """A padded copy of the model assists it: every draft is right."""
    model = copy.deepcopy(hf_model("llama"))
    helper, rounds = padded(model, 128), []
    model.register_forward_pre_hook(lambda *args: rounds.append(1))
    drafts = {"num_assistant_tokens": 6, "assistant_confidence_threshold": 0.0}
    generate(model, IDS, assistant_model=helper, **CALL | drafts)
    assert len(rounds) == 3


class Table(nn.Module):
    """Looks up the scores of the next token by the last one."""

    def __init__(self, width: int, seed: int) -> None:
        super().__init__()
        self.scores = torch.randn(8, width, generator=torch.Generator().manual_seed(seed))
        self.anchor = nn.Parameter(torch.zeros(1))

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.scores[input_ids] + self.anchor


@pytest.mark.parametrize("width", [3, 5, 7])
def test_sampled_texts_follow_the_models_distribution(width: int) -> None:
    """Covers all texts of three tokens, for a model with five tokens."""
    model, rows = Table(5, 0), 40000
    torch.manual_seed(1)
    call: dict[str, Any] = {"do_sample": True, "top_k": 0, "max_new_tokens": 3, "eos_token_id": None}
    drafts: dict[str, Any] = {
        "assistant_model": Table(width, 2),
        "num_assistant_tokens": 2,
        "assistant_confidence_threshold": 0.0,
    }
    texts = generate_tokens(model, torch.full((rows, 1), 2), **call, **drafts)[:, 1:]
    assert int(texts.max()) == 4
    p = model.scores[:5].softmax(-1)
    expected = (p[2][:, None, None] * p[:, :, None] * p[None]).flatten()
    found = torch.bincount((texts * torch.tensor([25, 5, 1])).sum(1), minlength=125) / rows
    # Draws from `expected` itself have a mean distance of 0.02.
    assert float((found - expected).abs().sum() / 2) < 0.035


def other_ends(model: Any, width: int) -> Any:
    helper = padded(model, width)
    for config in (helper.config, helper.generation_config):
        config.bos_token_id, config.eos_token_id = 71, 72
    return helper


@pytest.mark.parametrize(
    ("make", "width", "message"),
    [
        (padded, VOCAB_SIZE + 512, "got 101 and 613 tokens, a difference of 512 or more"),
        (other_ends, 90, r"got 101 and 90 tokens, and \[.*\] and \[71, 72\] as `bos_token_id` and `eos_token_id`"),
    ],
)
def test_other_tokens_need_both_tokenizers(make: Any, width: int, message: str) -> None:
    model = copy.deepcopy(hf_model("llama"))
    model.generation_config.bos_token_id = 1
    model.register_forward_pre_hook(lambda *args: pytest.fail("the model was run"))
    helper = make(model, width)
    call: dict[str, Any] = {"assistant_model": helper, "max_new_tokens": 3, "pad_token_id": 0}
    with pytest.raises(ValueError, match=f"`tokenizer` and `assistant_tokenizer` must be given .*{message}"):
        generate(model, IDS, tokenizer=object(), **call)
    with pytest.raises(ValueError, match="`tokenizer` must be given with `assistant_tokenizer`, got None"):
        generate(model, IDS, assistant_tokenizer=object(), **call)
