"""Compiled forwards: one graph each, no more graphs than in transformers' loop, and the same tokens."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from transformers import LlamaForCausalLM

from tests.generate.models import hf_model
from tests.helpers.generation import generate_tokens

PROMPTS = [torch.tensor([[5, 6, 7], [8, 9, 3]]), torch.tensor([[4, 5, 6, 7, 8], [1, 2, 3, 4, 9]])]
SETTINGS: dict[str, Any] = {"max_new_tokens": 4, "do_sample": True}


def _method(model: Any, **options: Any) -> Any:
    model.compile(**options)
    return model


def _forward(model: Any, **options: Any) -> Any:
    model.forward = torch.compile(model.forward, **options)
    return model


def graphs_and_tokens(how: Callable[..., Any], run: Callable[..., Tensor]) -> tuple[int, list[Tensor]]:
    """Returns the number of graphs for all prompts, one call each, and the tokens of the calls."""
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("eager")
    config = copy.deepcopy(hf_model("llama").config)
    config.num_hidden_layers = 1
    torch.manual_seed(0)
    model = how(LlamaForCausalLM(config).eval(), backend=counter, fullgraph=True)
    tokens = [run(model, input_ids=ids, attention_mask=torch.ones_like(ids), **SETTINGS) for ids in PROMPTS]
    torch._dynamo.reset()
    return counter.frame_count, tokens


@pytest.fixture(scope="module")
def of_transformers() -> tuple[int, list[Tensor]]:
    return graphs_and_tokens(_method, lambda model, **kwargs: model.generate(**kwargs))


@pytest.mark.parametrize("how", [_method, _forward, torch.compile], ids=["compile()", "forward", "torch.compile"])
def test_graphs(how: Callable[..., Any], of_transformers: tuple[int, list[Tensor]]) -> None:
    most, expected = of_transformers
    count, tokens = graphs_and_tokens(how, generate_tokens)
    assert 0 < count <= most
    assert all(ours.equal(theirs) for ours, theirs in zip(tokens, expected, strict=True))
