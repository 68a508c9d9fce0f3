"""rng="torch" on a GPU: the tokens and generator state of torch.multinomial."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pygen.ops import prepare_sample, process_logits, sample

DEVICE = "cuda"
SETTINGS: dict[str, dict[str, Any]] = {
    "neutral": {},
    "top_k": {"top_k": 50},
    "top_p": {"top_p": 0.9, "temperature": 0.7},
}


# 512 x 50257 elements exceed the threads of torch's launch on any GPU.
@pytest.mark.parametrize(("rows", "vocab_size"), [(1, 7), (3, 1000), (1, 151936), (8, 151936), (512, 50257)])
@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("backend", ["cuda", "triton"])
def test_tokens_and_generator_of_multinomial(backend: str, setting: str, rows: int, vocab_size: int) -> None:
    knobs = SETTINGS[setting]
    logits = torch.randn(rows, vocab_size, generator=torch.Generator().manual_seed(1)).to(DEVICE) * 3
    probabilities = torch.softmax(process_logits(logits, **knobs, backend=backend), -1)
    ours, theirs = (torch.Generator(DEVICE).manual_seed(2**40 + 7) for _ in range(2))
    prepared = prepare_sample(logits, rng="torch", generator=ours, **knobs, backend=backend)
    different = 0
    for _ in range(5):
        tokens = prepared(logits).token_ids
        different += int((tokens != torch.multinomial(probabilities, 1, generator=theirs)[:, 0]).sum())
        assert ours.get_state().equal(theirs.get_state())
    # About one in a million races is closer than float32 can resolve.
    assert different <= rows * 5 // 10000


def test_the_default_generator_of_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.randn(4, 1000, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    torch.manual_seed(5)
    first = sample(logits, rng="torch", backend="cuda").token_ids
    torch.manual_seed(5)
    assert torch.multinomial(torch.softmax(logits, -1), 1)[:, 0].equal(first)
