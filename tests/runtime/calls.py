"""Collects the visible results of a call, and compares those of two calls."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.generate.models import hf_model


class Collect:
    """A streamer that collects everything; at a given step it may fail or run a callback."""

    def __init__(self, at: int = -1, action: Any = None) -> None:
        self.events: list[Any] = []
        self._at, self._action = at, action

    def put(self, value: Tensor) -> None:
        self.events.append(value.tolist())

    def put_step(self, tokens: Tensor, logprobs: Tensor | None, reasons: list[str | None]) -> None:
        if len(self.events) - 1 == self._at:
            self._action()
        self.events.append((tokens.tolist(), None if logprobs is None else logprobs.tolist(), reasons))

    def end(self) -> None:
        self.events.append("end")


def same(a: Any, b: Any) -> bool:
    """Compares exactly, except for the last bits of log-probabilities.

    Attention over more masked positions sums in another order.
    """
    if isinstance(a, Tensor):
        return torch.allclose(a, b, atol=1e-4, equal_nan=True) if a.is_floating_point() else torch.equal(a, b)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == pytest.approx(b, abs=1e-4)) if isinstance(a, float) else bool(a == b)


def poisoned(token: int) -> Any:
    """Returns a model whose scores are NaN once a text contains `token`."""
    model = copy.deepcopy(hf_model("llama"))
    with torch.no_grad():
        model.get_input_embeddings().weight[token] = torch.nan
    return model
