"""What a batch holds on to while many prompts pass."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import pytest
import torch

import pygen
from pygen.batch.window_rows import WindowRows
from tests.batch.models import small_model


def _held() -> tuple[int, int]:
    """The number of live tensors and of their bytes."""
    gc.collect()
    tensors = [held for held in gc.get_objects() if type(held) is torch.Tensor]
    return len(tensors), sum(tensor.nbytes for tensor in tensors)


def _short_prompts(count: int, **settings: Any) -> Iterator[dict[str, Any]]:
    for number in range(count):
        ids = [1 + (number * place) % 100 for place in range(1, 2 + number % 7)]
        yield {"input_ids": ids, "max_new_tokens": 1 + number % 2, **settings}


def test_a_thousand_prompts_leave_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    run, held, capacities = WindowRows.forward, [], []

    def forward(rows: WindowRows) -> Any:
        capacities.append(rows._cache.capacity)
        return run(rows)

    monkeypatch.setattr(WindowRows, "forward", forward)
    for result in pygen.generate_batch(small_model("gpt2"), _short_prompts(1000), rows=4, as_completed=True):
        assert result.error is None
        if result.index % 200 == 199:
            held.append(_held())
    # As many columns were written as there are.
    assert len({*capacities}) == 1 and len(capacities) >= 240
    assert max(count for count, _ in held) <= held[0][0] + 20
    assert max(size for _, size in held) <= held[0][1] + 20_000


def test_stored_beginnings_are_bounded() -> None:
    beginnings = [[(7 * n + k) % 101 for n in range(40)] for k in range(30)]
    prompts = ({"input_ids": [*beginnings[n % 30], n % 101], "max_new_tokens": 1} for n in range(120))
    held = []
    for result in pygen.generate_batch(small_model("gpt2"), prompts, rows=2, prefix_positions=200):
        if result.index % 30 == 29:
            held.append(_held())
    assert max(size for _, size in held) <= held[0][1] + 20_000


def test_an_engine_forgets_prompts_that_have_ended() -> None:
    with pygen.Engine(small_model("gpt2"), rows=4) as engine:
        held = []
        for number, prompt in enumerate(_short_prompts(150)):
            engine.submit(prompt).result(timeout=60)
            if number % 50 == 49:
                held.append(_held())
        assert held[2][0] <= held[0][0] + 20 and held[2][1] <= held[0][1] + 20_000
