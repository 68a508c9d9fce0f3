"""rng="torch" on CUDA: the noise of torch's `exponential_` for each element, and the generator's final offset."""

from __future__ import annotations

import importlib
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor

from pygen import rng
from pygen.ops import DecodeState, _cuda, prepare_sample, process_logits
from tests.helpers import cuda_host
from tests.helpers.draws import assert_same_tokens
from tests.helpers.logits import make_logits

SEED, OFFSET = 2**40 + 7, 8
UNROLL, BLOCK = 4, 256


def launch(numel: int, multiprocessors: int, threads_per_multiprocessor: int) -> tuple[int, int]:
    """Returns the threads of torch's launch over `numel` elements, and its advance of the generator."""
    blocks = min(-(-numel // BLOCK), multiprocessors * (threads_per_multiprocessor // BLOCK))
    threads = blocks * BLOCK
    return threads, UNROLL * -(-numel // (UNROLL * threads))


def exponential(rows: int, vocab_size: int, threads: int, offset: int) -> Tensor:
    """Computes the noise: element n is draw n // threads of thread n % threads. Four draws share a Philox block."""
    element = torch.arange(rows * vocab_size)
    draw, thread = element // threads, element % threads
    position = offset // UNROLL + draw // UNROLL
    zero = torch.zeros_like(element)
    words = rng.philox4x32(
        (position & 0xFFFFFFFF, position >> 32, thread, zero), (zero + (SEED & 0xFFFFFFFF), zero + (SEED >> 32))
    )
    word = torch.stack(words)[draw % UNROLL, element].float()
    uniform = word * 2.0**-32 + 2.0**-33
    noise = torch.where(uniform >= 1 - 2.0**-24, torch.tensor(2.0**-24), -uniform.log())
    return noise.view(rows, vocab_size)


@pytest.fixture
def torch_backend(backend: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Gives the CUDA entry a generator with CUDA's state instead of the CPU's."""
    monkeypatch.setattr(_cuda, "taken_noise", lambda generator, increment: nullcontext((SEED, OFFSET)))
    table = importlib.import_module("pygen.ops.sample")._dispatch.entries
    monkeypatch.setitem(table, backend, cuda_host.entry(table["cuda"]))
    return backend


@pytest.mark.parametrize("knobs", [{}, {"top_k": 40}, {"top_p": 0.8, "temperature": 0.7}], ids=str)
# On the second, small device, torch's launch loops over the elements many times.
@pytest.mark.parametrize("limits", [(132, 2048), (1, 512)], ids=str)
def test_tokens(torch_backend: str, limits: tuple[int, int], knobs: dict[str, Any]) -> None:
    rows, vocab_size = 3, 5003
    logits = make_logits("spread", rows, vocab_size)
    cuda_host.host().set_device(9, 0, *limits, 232448)
    tokens = prepare_sample(logits, rng="torch", **knobs, backend=torch_backend)(logits).token_ids
    cuda_host.host().set_device(9, 0, 132, 2048, 232448)
    noise = exponential(rows, vocab_size, launch(rows * vocab_size, *limits)[0], OFFSET)
    scores = process_logits(logits, **knobs, backend="torch")
    race = (scores.double() - noise.double().log()).masked_fill(scores == -torch.inf, -torch.inf)
    assert_same_tokens(tokens, race.argmax(1), scores, noise)


def test_a_generator_on_the_device_advances(torch_backend: str) -> None:
    rows, vocab_size, steps = 2, 5003, 3
    state = DecodeState.create(torch.ones(rows, 1, dtype=torch.int64), steps)
    # The op's check requires the length of a CPU generator's state. The kernel reads the first two words.
    state.generator_state = torch.get_rng_state().clone()
    words = state.generator_state.view(torch.int64)[:2]
    words.copy_(torch.tensor([SEED, OFFSET]))
    logits = make_logits("normal", rows, vocab_size)
    prepared = prepare_sample(logits, rng="torch", state=state, backend=torch_backend)
    threads, increment = launch(rows * vocab_size, 132, 2048)
    for step in range(steps):
        tokens = prepared(logits, step=step).token_ids
        noise = exponential(rows, vocab_size, threads, OFFSET + step * increment)
        assert_same_tokens(tokens, (logits.double() - noise.double().log()).argmax(1), logits, noise)
        assert words.tolist() == [SEED, OFFSET + (step + 1) * increment]
