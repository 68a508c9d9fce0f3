"""Rows whose penalised tokens and tiles do not fit into the shared memory of a block."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from pygen.ops import BeamState, process_logits, sample
from tests.helpers import cuda_host
from tests.helpers.beams import candidates_of
from tests.helpers.logits import make_logits, strided_rows

HOPPER = (9, 0, 132, 2048, 232448)
# GPUs without clusters and with them, whose blocks have 99 KB.
DEVICES = {"sm_80": (8, 0, 108, 2048, 101376), "sm_120": (12, 0, 108, 1536, 101376)}
# Its bits, one per token, take 64 KB.
LARGE = 2**19 + 250
ROWS = 2
KNOBS: dict[str, Any] = {"repetition_penalty": 1.4, "frequency_penalty": 0.3, "prompt_lengths": 900, "temperature": 0.8}


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest, backend: str) -> Iterator[str]:
    cuda_host.host().set_device(*DEVICES[request.param])
    yield request.param
    cuda_host.host().set_device(*HOPPER)


def history_of(logits: Tensor, length: int) -> Tensor:
    """The best tokens of each row, twice the very best, one id below the vocabulary and one beyond it."""
    best = logits.float().topk(length - 3).indices
    outside = torch.tensor([-1, logits.shape[1]]).expand(len(logits), 2)
    return torch.cat([outside, best, best[:, :1]], dim=1)


def inputs(vocab_size: int, dtype: torch.dtype, length: int = 1000) -> tuple[Tensor, dict[str, Any]]:
    logits = strided_rows(make_logits("spread", ROWS, vocab_size, dtype=dtype))
    return logits, {**KNOBS, "input_ids": history_of(logits, length)}


@pytest.mark.parametrize(("vocab_size", "dtype"), [(LARGE, torch.float32), (151936, torch.bfloat16)])
def test_process_logits_and_sample(backend: str, device: str, vocab_size: int, dtype: torch.dtype) -> None:
    logits, knobs = inputs(vocab_size, dtype)
    wanted = process_logits(logits, **knobs, top_k=40, backend="cpu")
    assert process_logits(logits, **knobs, top_k=40, backend=backend).equal(wanted)
    for filters in ({"top_k": 40}, {"do_sample": False}):
        drawn, known = (sample(logits, seed=3, logprobs=2, **knobs, **filters, backend=b) for b in (backend, "cpu"))
        assert drawn.token_ids.equal(known.token_ids)
        torch.testing.assert_close(drawn.logprobs, known.logprobs, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("vocab_size", "num_beams"), [(LARGE, 2), (151936, 20)])
def test_beam_step(backend: str, device: str, vocab_size: int, num_beams: int) -> None:
    state = BeamState.create(torch.zeros(1, 300, dtype=torch.int64), 2, num_beams)
    logits = make_logits("spread", num_beams, vocab_size)
    state.token_ids[:, 1:300] = history_of(logits, 299).clamp(min=0)
    state.token_ids[:, 0] = torch.arange(num_beams)
    state.running_scores.copy_(-torch.arange(num_beams, dtype=torch.float32)[None])
    knobs: dict[str, Any] = {"step": 0, "repetition_penalty": 1.4, "suppress": [5]}
    ours, wanted = (candidates_of(logits, state, **knobs, backend=b) for b in (backend, "cpu"))
    assert ours[0].equal(wanted[0]) and ours[1].equal(wanted[1])


def test_a_history_of_8192_ids_on_a_large_gpu(backend: str) -> None:
    logits, knobs = inputs(LARGE, torch.bfloat16, length=8192)
    ours, wanted = (
        sample(logits[:1], do_sample=False, **{**knobs, "input_ids": knobs["input_ids"][:1]}, backend=b)
        for b in (backend, "cpu")
    )
    assert ours.token_ids.equal(wanted.token_ids)
