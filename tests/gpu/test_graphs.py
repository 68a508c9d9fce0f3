"""CUDA graphs: a replay reads steps and seeds again, draws fresh noise, and restores its workspace."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch

from pygen.graph.cuda_graph import CudaGraph
from pygen.ops import BeamState, KeptRows, KeptTokens, prepare_beam_step, prepare_sample, sample

DEVICE = torch.device("cuda")


def captured(call: Callable[[], object]) -> CudaGraph:
    return CudaGraph([call], lambda: None, CudaGraph.new_pool())


@pytest.mark.parametrize("backend", ["cuda", "triton"])
@pytest.mark.parametrize("knobs", [{}, {"top_k": 50, "top_p": 0.9}, {"top_p": 0.95, "output_kept": True}])
def test_replays_equal_eager_calls(backend: str, knobs: dict[str, Any]) -> None:
    logits = torch.randn(8, 50257, device=DEVICE)
    steps = torch.zeros(8, dtype=torch.int64, device=DEVICE)
    prepared = prepare_sample(logits, seed=3, step=steps, **knobs, backend=backend)
    graph = captured(lambda: prepared(logits))
    seen = set()
    for step in range(100):
        logits.copy_(torch.randn(8, 50257, device=DEVICE))
        steps.fill_(step)
        graph.replay()
        output = sample(logits, seed=3, step=step, **knobs, backend=backend)
        expected = output.token_ids
        assert prepared.out.token_ids.equal(expected)
        if isinstance(prepared.out.kept, KeptRows) and isinstance(output.kept, KeptTokens):
            assert prepared.out.kept.compressed().token_ids.equal(output.kept.token_ids)
        seen.add(tuple(expected.tolist()))
    assert len(seen) > 90


@pytest.mark.parametrize("backend", ["cuda", "triton"])
def test_a_graph_of_torch_captures_a_call(backend: str) -> None:
    logits, temperature = torch.randn(8, 50257, device=DEVICE), torch.linspace(0, 2, 8, device=DEVICE)
    seeds, steps = torch.arange(8, device=DEVICE), torch.zeros(8, dtype=torch.int64, device=DEVICE)

    def call() -> torch.Tensor:
        knobs: dict[str, Any] = {"temperature": temperature, "top_k": 50, "backend": backend}
        return torch.stack([sample(logits, seed=seed, step=steps, **knobs).token_ids for seed in (seeds, 3)])

    call()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        tokens = call()
    for step in range(3):
        logits.copy_(torch.randn(8, 50257, device=DEVICE))
        steps.fill_(step)
        temperature.mul_(1.1)
        graph.replay()
        assert tokens.equal(call())


@pytest.mark.parametrize("backend", ["cuda", "triton"])
def test_a_search_of_replays(backend: str) -> None:
    """The state counts the steps, so that every replay takes the next one."""
    logits = torch.randn(8, 20000, device=DEVICE)
    prompt = torch.ones(2, 3, dtype=torch.int64, device=DEVICE)
    wanted, state = (BeamState.create(prompt, 8, 4) for _ in range(2))
    state = dataclasses.replace(state, steps=torch.zeros(8, dtype=torch.int64, device=DEVICE))
    eager = prepare_beam_step(logits, wanted, backend=backend)
    prepared = prepare_beam_step(logits, state, backend=backend)
    before = copy.deepcopy(state)
    graph = captured(lambda: prepared(logits))
    for name, value in vars(before).items():
        if isinstance(value, torch.Tensor):
            getattr(state, name).copy_(value)
    for step in range(8):
        logits.copy_(torch.randn(8, 20000, device=DEVICE))
        graph.replay()
        for one, other in zip(prepared.out, eager(logits, step=step), strict=True):
            assert one.equal(other)
        assert state.tokens(step + 1).equal(wanted.tokens(step + 1))
    for name in ("slots", "shared", "running_scores", "step_tokens", "step_parents", "finished_scores", "unfinished"):
        assert getattr(state, name).equal(getattr(wanted, name)), name
    assert state.steps is not None and state.steps.tolist() == [8] * 8
