"""CUDA graphs: a replay reads steps and seeds anew, draws fresh noise, and leaves its workspace as it found it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from pygen.loops.beam_state import BeamState
from pygen.ops import prepare_beam_step, prepare_sample, sample
from pygen.runtime.cuda_graph import CudaGraph

DEVICE = torch.device("cuda")


def captured(call: Callable[[], object]) -> CudaGraph:
    return CudaGraph([call], lambda: None, CudaGraph.new_pool())


@pytest.mark.parametrize("backend", ["cuda", "triton"])
@pytest.mark.parametrize("knobs", [{}, {"top_k": 50, "top_p": 0.9}, {"top_p": 0.95}])
def test_replays_equal_eager_calls(backend: str, knobs: dict[str, float]) -> None:
    logits = torch.randn(8, 50257, device=DEVICE)
    steps = torch.zeros(8, dtype=torch.int64, device=DEVICE)
    prepared = prepare_sample(logits, seed=3, step=steps, **knobs, backend=backend)
    graph = captured(lambda: prepared(logits))
    seen = set()
    for step in range(100):
        logits.copy_(torch.randn(8, 50257, device=DEVICE))
        steps.fill_(step)
        graph.replay()
        expected = sample(logits, seed=3, step=step, **knobs, backend=backend).token_ids
        assert prepared.out.token_ids.equal(expected)
        seen.add(tuple(expected.tolist()))
    assert len(seen) > 90


@pytest.mark.parametrize("backend", ["cuda", "triton"])
def test_replayed_beam_steps(backend: str) -> None:
    logits = torch.randn(8, 20000, device=DEVICE)
    prompt = torch.ones(2, 3, dtype=torch.int64, device=DEVICE)
    state, other = (BeamState.create(prompt, 8, 4) for _ in range(2))
    prepared = prepare_beam_step(logits, state, backend=backend)
    eager = prepare_beam_step(logits, other, backend=backend)
    before = {name: value.clone() for name, value in vars(state).items() if isinstance(value, torch.Tensor)}
    graph = captured(lambda: prepared(logits, step=0))
    for name, value in before.items():
        getattr(state, name).copy_(value)
    graph.replay()
    eager(logits, step=0)
    for name in before:
        assert getattr(state, name).equal(getattr(other, name)), name
