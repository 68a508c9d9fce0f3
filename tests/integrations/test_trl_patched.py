"""TRL: steps of RLOO and online DPO are the same on a patched model; tests/clients has GRPO."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from trl import RLOOConfig, RLOOTrainer
from trl.experimental.online_dpo import OnlineDPOConfig, OnlineDPOTrainer

import pygen
from pygen import mixin
from tests.clients import models

STEPS = 3
PROMPTS = [f"w{number} w{number + 1} w{number + 3}" for number in range(6)]

Train = Callable[[Any, Path], list[float]]


def settings(folder: Path) -> dict[str, Any]:
    return {
        "output_dir": str(folder),
        "max_steps": STEPS,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "report_to": [],
        "save_strategy": "no",
        "use_cpu": True,
        "seed": 3,
        "disable_tqdm": True,
        "bf16": False,
    }


def losses(trainer: Any) -> list[float]:
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def rloo(model: Any, folder: Path) -> list[float]:
    def reward(completion_ids: list[list[int]], **kwargs: Any) -> list[float]:
        return [sum(ids) % 7 / 7.0 for ids in completion_ids]

    arguments = RLOOConfig(num_generations=4, max_completion_length=6, beta=0.0, **settings(folder))
    data = Dataset.from_dict({"prompt": PROMPTS})
    return losses(RLOOTrainer(model, reward, args=arguments, train_dataset=data, processing_class=models.tokenizer()))


def online_dpo(model: Any, folder: Path) -> list[float]:
    def reward(completions: list[str], **kwargs: Any) -> list[float]:
        return [len(text) % 7 / 7.0 for text in completions]

    arguments = OnlineDPOConfig(max_new_tokens=6, missing_eos_penalty=None, **settings(folder))
    data = Dataset.from_dict({"prompt": PROMPTS})
    tokenizer = models.tokenizer()
    return losses(
        OnlineDPOTrainer(model, reward_funcs=reward, args=arguments, train_dataset=data, processing_class=tokenizer)
    )


@pytest.mark.parametrize("train", [rloo, online_dpo])
def test_steps_of_a_patched_model(train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[Any] = []

    def counted(model: Any, *args: Any, **kwargs: Any) -> Any:
        called.append(model)
        return pygen.generate(model, *args, **kwargs)

    monkeypatch.setattr(mixin, "generate", counted)
    plain, patched = models.model(), models.model()
    expected = train(plain, tmp_path)
    assert called == []
    with pygen.patch(patched):
        found = train(patched, tmp_path)
    assert len(called) >= STEPS and len(found) == STEPS and found == expected
    assert models.parameters(patched).equal(models.parameters(plain))
    assert not models.parameters(patched).equal(models.parameters(models.model()))
