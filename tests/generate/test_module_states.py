"""States inside a model's modules, as RecurrentGemma has, follow the rows of beams."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from pygen.generate import generate
from tests.shadow.architectures import texts, tiny_model


@pytest.mark.parametrize("do_sample", [False, True])
def test_every_beam_continues_its_own_text(do_sample: bool) -> None:
    model = tiny_model("RecurrentGemmaForCausalLM")
    whole, checked = copy.deepcopy(model), 0

    def check(input_ids: Tensor, scores: Tensor) -> Tensor:
        nonlocal checked
        expected = whole(input_ids=input_ids, use_cache=False).logits[:, -1]
        torch.testing.assert_close(scores.log_softmax(-1), expected.log_softmax(-1), rtol=1e-4, atol=1e-4)
        checked += 1
        return scores

    ids = texts(model.config, 2)["input_ids"]
    generate(model, ids, max_new_tokens=8, num_beams=3, do_sample=do_sample, eos_token_id=-1, logits_processor=[check])
    assert checked == 8


def test_states_with_unknown_row_dimension_are_refused() -> None:
    model = tiny_model("RecurrentGemmaForCausalLM")
    ids = texts(model.config, 2)["input_ids"]
    with pytest.raises(NotImplementedError, match="the rows of `.*state.*keeps to itself, cannot be moved"):
        generate(model, ids, max_new_tokens=4, num_beams=3, past_key_values=DynamicCache(config=model.config))
