"""TRL: steps of GRPO are the same with and without a patch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

import pygen
from tests.clients import models

STEPS = 3


def train(model: Any, folder: Path) -> tuple[list[float], list[list[list[int]]]]:
    """Returns the losses, and the completions of every step."""
    completions: list[list[list[int]]] = []

    def reward(completion_ids: list[list[int]], **kwargs: Any) -> list[float]:
        completions.append(completion_ids)
        return [sum(ids) % 7 / 7.0 for ids in completion_ids]

    settings = GRPOConfig(
        output_dir=str(folder),
        max_steps=STEPS,
        per_device_train_batch_size=4,
        num_generations=4,
        max_completion_length=6,
        learning_rate=1e-2,
        # With several updates per batch the loss is not 0.
        num_iterations=2,
        steps_per_generation=1,
        logging_steps=1,
        report_to=[],
        save_strategy="no",
        use_cpu=True,
        seed=3,
        disable_tqdm=True,
        bf16=False,
    )
    prompts = Dataset.from_dict({"prompt": [f"w{number} w{number + 1} w{number + 3}" for number in range(6)]})
    trainer = GRPOTrainer(model, reward, args=settings, train_dataset=prompts, processing_class=models.tokenizer())
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry], completions


def test_grpo(tmp_path: Path, calls: list[Any]) -> None:
    plain, patched = models.model(), models.model()
    expected, texts = train(plain, tmp_path)
    with pygen.patch(patched):
        losses, generated = train(patched, tmp_path)
    assert len(calls) >= 2
    assert len(losses) == STEPS and losses == expected and generated == texts
    assert models.parameters(patched).equal(models.parameters(plain))
    assert not models.parameters(patched).equal(models.parameters(models.model()))
    assert any(torch.tensor(losses) != 0)
