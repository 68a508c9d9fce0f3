"""A few steps of GRPO, as the tests with TRL compare them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

STEPS = 3


class Trained:
    """What a run of GRPO leaves behind."""

    def __init__(
        self, model: Any, tokenizer: Any, prompts: list[Any], folder: Path, settings: Any, **more: Any
    ) -> None:
        self.completions: list[list[list[int]]] = []
        self.kept: list[Any] = []

        def reward(completion_ids: list[list[int]], kept: Any = None, **kwargs: Any) -> list[float]:
            self.completions.append(completion_ids)
            self.kept.append(kept)
            return [sum(ids) % 7 / 7.0 for ids in completion_ids]

        defaults: dict[str, Any] = {
            "max_steps": STEPS,
            "per_device_train_batch_size": 4,
            "num_generations": 4,
            "max_completion_length": 6,
            "learning_rate": 1e-3,
            # With several updates per batch the loss is not 0.
            "num_iterations": 2,
            "steps_per_generation": 1,
            "logging_steps": 1,
            "report_to": [],
            "save_strategy": "no",
            "use_cpu": True,
            "seed": 3,
            "disable_tqdm": True,
            "bf16": False,
        }
        arguments = GRPOConfig(output_dir=str(folder), **{**defaults, **settings})
        data = Dataset.from_dict({"prompt": prompts})
        trainer = GRPOTrainer(model, reward, args=arguments, train_dataset=data, processing_class=tokenizer, **more)
        trainer.train()
        self.losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        self.model = model
