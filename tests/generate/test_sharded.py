"""Models under FSDP, DDP, accelerate and tensor parallelism generate the unwrapped model's tokens."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
from torch import multiprocessing

from tests.generate import sharded_worker
from tests.generate.models import hf_model


@pytest.mark.parametrize("world_size", [1, 2])
def test_processes(world_size: int, tmp_path: Path) -> None:
    # Tensor parallelism needs a head that splits evenly.
    even = copy.deepcopy(hf_model("llama"))
    even.resize_token_embeddings(102)
    even.save_pretrained(tmp_path / "model")
    context = multiprocessing.get_context("spawn")
    failures = context.SimpleQueue()
    arguments = [(rank, world_size, str(tmp_path), failures) for rank in range(world_size)]
    processes = [context.Process(target=sharded_worker.run, args=each) for each in arguments]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=240)
    late = [process for process in processes if process.is_alive()]
    for process in late:
        process.kill()
    assert failures.empty(), failures.get()
    assert not late and {process.exitcode for process in processes} == {0}
