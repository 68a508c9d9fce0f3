"""`synced_gpus`: processes that share weights run equally many forwards, and generate what each would alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import distributed, multiprocessing

from pygen.generate import generate
from pygen.models.lockstep import resolve_synced_gpus
from tests.generate import synced_worker
from tests.generate.models import counting_table
from tests.helpers.generation import generate_tokens

IDS = torch.tensor([[5, 6, 7]])


def test_two_processes(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    failures = context.SimpleQueue()
    processes = [
        context.Process(target=synced_worker.run, args=(rank, str(tmp_path / "store"), failures)) for rank in range(2)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=150)
    late = [process for process in processes if process.is_alive()]
    for process in late:
        process.kill()
    assert failures.empty(), failures.get()
    assert not late and [process.exitcode for process in processes] == [0, 0]


def test_one_process_is_not_synced() -> None:
    assert resolve_synced_gpus(None, counting_table()) is False
    assert torch.equal(
        generate_tokens(counting_table(20), IDS, max_new_tokens=2, synced_gpus=False),
        generate_tokens(counting_table(20), IDS, max_new_tokens=2),
    )


def test_wrong_values(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="`synced_gpus`=True needs a process group"):
        generate(counting_table(20), IDS, max_new_tokens=2, synced_gpus=True)
    with pytest.raises(TypeError, match="`synced_gpus` must be a bool, got int"):
        generate(counting_table(20), IDS, max_new_tokens=2, synced_gpus=1)  # type: ignore[arg-type]
    monkeypatch.setattr(distributed, "is_initialized", lambda: True)
    with pytest.raises(NotImplementedError, match="`guidance_scale` runs forwards that `synced_gpus`=True cannot"):
        generate(counting_table(20), IDS, max_new_tokens=2, synced_gpus=True, guidance_scale=1.5)
    with pytest.raises(NotImplementedError, match="`dola_layers` reads the head by itself, which `synced_gpus`=True"):
        generate(counting_table(20), IDS, max_new_tokens=2, synced_gpus=True, dola_layers="low")
