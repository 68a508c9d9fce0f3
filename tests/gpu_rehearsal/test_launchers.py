"""Every op on stand-in CUDA tensors: the whole way to the launcher of each GPU backend, up to the driver."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from benchmarks.gpu_small_ops import RUNS, Scope
from pygen import _C, BackendError
from pygen.ops import BeamOutput, BeamState, _cuda, beam_finalize, sample
from tests.helpers.stand_in_gpu import Launches, RefusedKernels, stand_in_gpu
from tests.helpers.triton_launches import only_listed_launches

# What each op asks of the extension, and the kernel of Triton that it launches last.
LAUNCHERS = {
    "sample": ("SamplePlan", "sample_rows_kernel"),
    "beam_step": ("BeamPlan", "update_beams_kernel"),
    "process_logits": ("ProcessPlan", "filter_rows_kernel"),
    "token_logprobs": ("launch_token_logprobs", "token_logprobs_kernel"),
    "verify_draft": ("launch_verify_draft", "verify_draft_kernel"),
    "reorder_cache": ("launch_reorder_cache", "reorder_cache_kernel"),
    "beam_finalize": ("launch_beam_finalize", "beam_finalize_kernel"),
}


GPU_TESTS = sorted(path.stem for path in (Path(__file__).parents[1] / "gpu").glob("test_*.py"))


def run(op: str, backend: str) -> int:
    """Runs the small calls of an op; returns how many."""
    scope = Scope(torch.device("cuda"), backend, few=False)
    # That of the suite searches on the CPU first, which needs values.
    calls = finalized(scope) if op == "beam_finalize" else RUNS[op](scope)
    return sum(1 for _ in calls)


def finalized(scope: Scope) -> Iterator[BeamOutput]:
    state = BeamState.create(torch.ones(2, 3, dtype=torch.int64, device=scope.device), 6, 4, eos_token_ids=[2])
    yield beam_finalize(state, 2, backend=scope.backend)


@pytest.fixture(scope="module")
def launches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launches]:
    with stand_in_gpu():
        counted = Launches(tmp_path_factory.mktemp("driver"))
    yield counted


@pytest.mark.parametrize("name", GPU_TESTS)
def test_the_tests_of_a_gpu_import(name: str) -> None:
    """Some of them put tensors on the GPU when they are collected."""
    with stand_in_gpu():
        importlib.import_module(f"tests.gpu.{name}")


def test_every_op_has_a_launcher() -> None:
    assert {*LAUNCHERS} == {*RUNS}


def test_the_build_has_cuda_kernels() -> None:
    assert _C.build_info()["cuda"], _C.build_info()["cuda_reason"]


def test_without_a_stand_in_an_op_names_the_missing_device() -> None:
    with pytest.raises(BackendError, match="cuda: torch finds no CUDA device; triton: torch finds no CUDA device"):
        sample(torch.zeros(1, 8), backend="cuda")
    with pytest.raises(RuntimeError, match="Found no NVIDIA driver"):
        torch.zeros(1, device="cuda")


@pytest.mark.parametrize("op", LAUNCHERS)
def test_cuda_ends_at_the_missing_driver(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = RefusedKernels()
    monkeypatch.setattr(_cuda, "kernels", lambda: kernels)
    with stand_in_gpu():
        calls = run(op, "cuda")
    assert {*kernels.refusals} == {LAUNCHERS[op][0]} and kernels.refusals.total() >= calls > 0


@pytest.mark.parametrize("op", LAUNCHERS)
def test_triton_launches_through_its_own_runtime(op: str, launches: Launches) -> None:
    before = launches.counts()
    with stand_in_gpu(), only_listed_launches():
        calls = run(op, "triton")
    made = launches.counts() - before
    assert made[LAUNCHERS[op][1]] >= calls > 0
