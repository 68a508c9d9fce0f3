"""Makes captures possible on the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

import pygen
from pygen.graph.cuda_graph import CAPTURES
from tests.generate.models import FAMILIES, hf_model
from tests.runtime.captures import PlainCalls, TapedForward


@pytest.fixture(params=[PlainCalls, TapedForward])
def capture(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The class that captures steps on the CPU; `made` counts its captures."""
    monkeypatch.setitem(CAPTURES, "cpu", request.param)
    monkeypatch.setattr(request.param, "made", 0)
    yield request.param
    for family in FAMILIES:
        pygen.release(hf_model(family))


@pytest.fixture
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def small_models(one_thread: None) -> Iterator[None]:
    """Runs without gradients in one thread, because the models are too small for several."""
    with torch.no_grad():
        yield
