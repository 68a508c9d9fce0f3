"""Captured steps on a GPU: tokens as eagerly, other calls on the same capture, failures, and memory."""

from __future__ import annotations

import copy
import random
from typing import Any

import pytest
import torch

import pygen
from tests.generate.models import hf_model

IDS = torch.randint(1, 100, (3, 5), generator=torch.Generator().manual_seed(0))
STEPS = 40


def model_of(family: str) -> Any:
    return copy.deepcopy(hf_model(family)).cuda()


def tokens_of(runtime: str, model: Any, **settings: Any) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(3)
    tokens = pygen.generate(model, IDS.cuda(), runtime=runtime, **{"max_new_tokens": STEPS, **settings})
    return tokens, torch.cuda.get_rng_state()


def check(model: Any, **settings: Any) -> None:
    eager, graph = (tokens_of(runtime, model, **settings) for runtime in ("eager", "graph"))
    assert eager[0].equal(graph[0]) and eager[1].equal(graph[1])


SETTINGS: list[dict[str, Any]] = [
    {},
    {"do_sample": True},
    {"do_sample": True, "seed": 3, "top_k": 20, "top_p": 0.9, "repetition_penalty": 1.2, "no_repeat_ngram_size": 3},
    {"do_sample": True, "num_return_sequences": 2, "eos_token_id": [*range(10)], "pad_token_id": 0},
    {"on_invalid": "eos", "eos_token_id": 7, "pad_token_id": 0, "min_new_tokens": 5},
    {"compile_config": pygen.CompileConfig()},
]


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen2"])
@pytest.mark.parametrize("settings", SETTINGS)
def test_as_eager(family: str, settings: dict[str, Any]) -> None:
    check(model_of(family), **settings)


def test_other_parameters_and_models_on_the_same_captures() -> None:
    models, draw = [model_of("llama"), model_of("gpt2")], random.Random(0)
    for number in range(26):
        settings = {"temperature": draw.uniform(0.3, 2.0), "top_p": draw.uniform(0.3, 0.95), "seed": number}
        settings |= {"repetition_penalty": draw.uniform(1.1, 1.6), "max_new_tokens": draw.randrange(2, STEPS)}
        check(models[number % 2], do_sample=True, eos_token_id=draw.randrange(100), pad_token_id=0, **settings)


class Failing(pygen.BaseStreamer):
    def __init__(self) -> None:
        self.left = 6

    def put(self, value: torch.Tensor) -> None:
        self.left -= 1
        if self.left == 0:
            raise KeyError("from the streamer")

    def end(self) -> None:
        pass


def test_a_failing_streamer() -> None:
    model = model_of("llama")
    check(model, do_sample=True)
    states = []
    for runtime in ("eager", "graph"):
        with pytest.raises(KeyError, match="from the streamer"):
            tokens_of(runtime, model, do_sample=True, streamer=Failing())
        states.append(torch.cuda.get_rng_state())
    assert states[0].equal(states[1])
    check(model, do_sample=True)


def test_release_gives_all_memory_back() -> None:
    model = model_of("llama")
    tokens_of("eager", model, do_sample=True)
    before = torch.cuda.memory_allocated()
    tokens_of("graph", model, do_sample=True)
    held = torch.cuda.memory_allocated()
    tokens_of("graph", model, do_sample=True)
    assert before < torch.cuda.memory_allocated() == held
    pygen.release(model)
    assert torch.cuda.memory_allocated() == before
