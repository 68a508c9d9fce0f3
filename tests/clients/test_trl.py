"""TRL: steps of GRPO are the same with and without a patch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

import pygen
from tests.clients import models
from tests.integrations.grpo import STEPS, Trained


def test_grpo(tmp_path: Path, calls: list[Any]) -> None:
    prompts = [f"w{number} w{number + 1} w{number + 3}" for number in range(6)]
    plain, patched = models.model(), models.model()

    def trained(model: Any) -> Trained:
        return Trained(model, models.tokenizer(), prompts, tmp_path, {"learning_rate": 1e-2})

    expected = trained(plain)
    with pygen.patch(patched):
        found = trained(patched)
    assert len(calls) >= 2
    assert len(found.losses) == STEPS and found.losses == expected.losses
    assert found.completions == expected.completions
    assert models.parameters(patched).equal(models.parameters(plain))
    assert not models.parameters(patched).equal(models.parameters(models.model()))
    assert any(torch.tensor(found.losses) != 0)
