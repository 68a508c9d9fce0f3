"""Captures that fail, and captures on several GPUs."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

import pygen
from pygen.graph.cuda_graph import CudaGraph
from pygen.ops import sample
from tests.generate.models import hf_model

DEVICE = torch.device("cuda")
several = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")


def doubling(cell: torch.Tensor, pool: Any = None) -> CudaGraph:
    """Captured on the device of `cell`."""
    pool = CudaGraph.new_pool(cell.device) if pool is None else pool
    return CudaGraph([lambda: cell.mul_(2)], lambda: None, pool)


def check_captures_and_draws(cell: torch.Tensor, pool: Any = None) -> None:
    stream = torch.cuda.current_stream(cell.device)
    assert stream == torch.cuda.default_stream(cell.device)
    graph = doubling(cell, pool)
    cell.fill_(3)
    graph.replay()
    graph.replay()
    assert int(cell) == 12
    torch.cuda.empty_cache()
    torch.rand(5, device=cell.device)
    torch.multinomial(torch.ones(5, device=cell.device), 1)


@pytest.mark.parametrize("in_warm_up", [False, True])
def test_after_a_capture_that_fails(in_warm_up: bool) -> None:
    cell, pool = torch.ones((), device=DEVICE), CudaGraph.new_pool(DEVICE)
    earlier = doubling(cell, pool)
    left = [0 if in_warm_up else 2]

    def reads_on_the_host() -> None:
        big = torch.ones(1 << 22, device=DEVICE)
        cell.add_(big.sum())
        if left[0] == 0:
            big.cpu()
            raise KeyError("from the part")
        left[0] -= 1

    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    for _ in range(3):
        left[0] = 0 if in_warm_up else 2
        with pytest.raises(KeyError if in_warm_up else RuntimeError, match="from the part" if in_warm_up else "captur"):
            CudaGraph([reads_on_the_host], lambda: None, pool)
    assert torch.cuda.memory_allocated() == before
    cell.fill_(5)
    earlier.replay()
    assert int(cell) == 10
    check_captures_and_draws(cell, pool)
    check_captures_and_draws(cell)


def test_the_pool_of_a_failed_capture_is_given_back() -> None:
    def fails() -> None:
        big = torch.ones(1 << 26, device=DEVICE)
        if torch.cuda.is_current_stream_capturing():
            big.cpu()

    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved()
    for _ in range(3):
        with pytest.raises(RuntimeError):
            CudaGraph([fails], lambda: None, CudaGraph.new_pool())
        torch.cuda.empty_cache()
        # Far less than the 256 MB of one part.
        assert torch.cuda.memory_reserved() - before < 1 << 26


def test_a_capture_without_kernels() -> None:
    pool = CudaGraph.new_pool(DEVICE)
    with pytest.raises(RuntimeError, match="it recorded no kernel: nothing ran on the current stream of cuda:0"):
        CudaGraph([lambda: None], lambda: None, pool)
    check_captures_and_draws(torch.ones((), device=DEVICE), pool)


@several
def test_a_capture_for_another_gpu_records_no_kernel() -> None:
    cell = torch.ones((), device="cuda:1")
    with pytest.raises(RuntimeError, match="it recorded no kernel"):
        CudaGraph([lambda: cell.mul_(2)], lambda: None, CudaGraph.new_pool(torch.device("cuda:0")))
    check_captures_and_draws(cell)


@several
def test_gpus_take_turns() -> None:
    cells = [torch.ones((), device=f"cuda:{index}") for index in (0, 1, 0, 1)]
    for cell in cells:
        check_captures_and_draws(cell)
    graphs = [doubling(cell) for cell in cells]
    for cell, graph in zip(cells, graphs, strict=True):
        cell.fill_(1)
        graph.replay()
    assert [int(cell) for cell in cells] == [2, 2, 2, 2]


@several
@pytest.mark.parametrize("backend", ["cuda", "triton"])
def test_an_op_runs_on_the_gpu_of_its_tensor(backend: str) -> None:
    """It runs on that GPU's current stream, even while another GPU is current."""
    logits = torch.randn(4, 50257, generator=torch.Generator().manual_seed(1))
    settings: dict[str, Any] = {"seed": 3, "top_k": 50, "top_p": 0.9}
    wanted = sample(logits, **settings, backend="torch").token_ids
    for index in (0, 1):
        stream = torch.cuda.Stream(index)
        with torch.cuda.stream(stream), torch.cuda.device(1 - index):
            there = logits.to(f"cuda:{index}")
            tokens = sample(there, **settings, backend=backend).token_ids
            assert torch.cuda.current_device() == 1 - index
        stream.synchronize()
        assert tokens.device == there.device and tokens.cpu().equal(wanted)


@several
@pytest.mark.parametrize("settings", [{"do_sample": True, "seed": 3}, {"num_beams": 3}])
def test_generate_on_two_gpus(settings: dict[str, Any]) -> None:
    """Every prompt differs from the one before, so a replay of a capture for another GPU would give old tokens."""
    models = [copy.deepcopy(hf_model("llama")).to(f"cuda:{index}") for index in (0, 1)]
    for round_number in range(3):
        ids = torch.randint(1, 100, (2, 7), generator=torch.Generator().manual_seed(round_number))
        outputs = []
        for model in models:
            graph, eager = (
                pygen.generate(model, ids.to(model.device), max_new_tokens=30, runtime=runtime, **settings)
                for runtime in ("graph", "eager")
            )
            assert isinstance(graph, torch.Tensor) and isinstance(eager, torch.Tensor)
            assert graph.device == model.device and graph.equal(eager)
            outputs.append(graph.cpu())
        assert outputs[0].equal(outputs[1])
