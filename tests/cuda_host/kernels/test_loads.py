"""Counts a kernel's loads of logits from global memory: evidence for its speed that needs no GPU.

A kernel loads each logit once. With a list of the largest scores it loads the few blocks with these scores again.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from pygen.ops import BeamState, prepare_beam_step, prepare_sample, token_logprobs
from tests.helpers import cuda_host
from tests.helpers.logits import make_history, make_logits

VOCAB = 151936
ONCE, SPARSE = 1.0, 1.04
HOPPER, AMPERE = (9, 0, 132, 2048, 232448), (8, 0, 108, 2048, 166912)
PENALTY = {"repetition_penalty": 1.1, "input_ids": make_history(1, 1024, VOCAB)}
# knobs, and the maximum of reads of the whole row: on a GPU with clusters, and without
CASES: dict[str, tuple[dict[str, Any], float, float]] = {
    "penalty, temperature, top-k, top-p": ({**PENALTY, "temperature": 0.7, "top_k": 50, "top_p": 0.9}, SPARSE, SPARSE),
    "greedy": ({"do_sample": False}, SPARSE, SPARSE),
    "no filter": ({}, ONCE, ONCE),
    # If no list holds the nucleus, the kernel scans the row again: in the shared memory of a cluster, or else in L2.
    "a nucleus": ({"top_p": 0.5}, SPARSE, 5.0),
    "a wide nucleus": ({"top_p": 0.9, "temperature": 3.0}, ONCE, 5.0),
}


@pytest.fixture(params=[HOPPER, AMPERE], ids=["sm_90", "sm_80"])
def device(request: pytest.FixtureRequest, backend: str) -> Iterator[tuple[int, ...]]:
    cuda_host.host().set_device(*request.param)
    yield request.param
    cuda_host.host().set_device(*HOPPER)


def reads_of(logits: Tensor, call: Any) -> float:
    """Returns the bytes that `call` loads from `logits`, divided by their size."""
    host = cuda_host.host()
    host.watch("logits", logits.data_ptr(), logits.nbytes)
    try:
        call()
        return float(host.loads("logits")[1] / logits.nbytes)
    finally:
        host.forget_watched()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("case", CASES)
def test_sample(backend: str, device: tuple[int, ...], case: str, dtype: torch.dtype) -> None:
    knobs, with_clusters, without = CASES[case]
    logits = make_logits("spread", 1, VOCAB, dtype=dtype)
    prepared = prepare_sample(logits, seed=1, **knobs, backend=backend)
    assert 1.0 <= reads_of(logits, lambda: prepared(logits)) <= (with_clusters if device == HOPPER else without)


def test_beam_step(backend: str, device: tuple[int, ...]) -> None:
    state = BeamState.create(torch.ones(1, 2, dtype=torch.int64), 4, 2)
    logits = make_logits("spread", 2, VOCAB)
    prepared = prepare_beam_step(logits, state, backend=backend)
    prepared(logits, step=0)
    assert 1.0 <= reads_of(logits, lambda: prepared(logits, step=1)) <= SPARSE


@pytest.mark.parametrize(("top", "most"), [(0, ONCE), (5, SPARSE)])
def test_token_logprobs(backend: str, device: tuple[int, ...], top: int, most: float) -> None:
    logits = make_logits("spread", 1, VOCAB)
    token_ids = torch.tensor([7])
    assert 1.0 <= reads_of(logits, lambda: token_logprobs(logits, token_ids, top=top, backend=backend)) <= most + 1e-4
