"""Logits to measure on: synthetic distributions, and recorded logits of SmolLM2 over a text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from benchmarks.machine import cache_bytes

TRACES = Path(__file__).resolve().parent / "traces"
DISTRIBUTIONS = ("normal1", "normal5", "gumbel", "ties", "smollm2")
ARENA_BYTES = 1 << 30


def make_logits(
    distribution: str, rows: int, vocab_size: int, dtype: torch.dtype = torch.float32, seed: int = 0
) -> torch.Tensor:
    """Returns (rows, vocab_size) logits on the CPU.

    normal1, normal5: normal with standard deviation 1 and 5. gumbel: -ln(-ln u), with the long right tail of a trained
    model's scores. ties: normal with standard deviation 0.5, rounded to eighths, so that thresholds fall into large
    groups of equal logits. smollm2: the recorded rows, repeated cyclically; `vocab_size` must be the recorded one.
    """
    generator = torch.Generator().manual_seed(seed)
    if distribution == "smollm2":
        traces = load_traces()
        if vocab_size != traces.shape[1]:
            raise ValueError(f"`vocab_size` must be {traces.shape[1]} for the recorded logits, got {vocab_size}")
        first = int(torch.randint(len(traces), (1,), generator=generator))
        return traces[(torch.arange(rows) + first) % len(traces)].to(dtype)
    shape = (rows, vocab_size)
    if distribution == "normal1":
        logits = torch.randn(shape, generator=generator)
    elif distribution == "normal5":
        logits = torch.randn(shape, generator=generator) * 5
    elif distribution == "gumbel":
        logits = -torch.empty(shape).exponential_(generator=generator).log()
    elif distribution == "ties":
        logits = (torch.randn(shape, generator=generator) * 4).round() / 8
    else:
        raise ValueError(f"`distribution` must be one of {', '.join(DISTRIBUTIONS)}, got {distribution!r}")
    return logits.to(dtype)


def rotation(logits: torch.Tensor, cache: str, most: int | None = None) -> list[torch.Tensor]:
    """Returns buffers with the rows of `logits` in different orders, to be used in turn.

    cold: enough buffers to fill the last-level cache twice (at most ARENA_BYTES, and at most `most` buffers), so that a
    call reads its input from memory. warm: one buffer, which stays where the previous call left it.
    """
    if cache == "warm":
        return [logits]
    size = logits.numel() * logits.element_size()
    wanted = min(2 * cache_bytes(logits.device), ARENA_BYTES)
    count = max(2, -(-wanted // max(size, 1)))
    count = count if most is None else min(count, most)
    arena = logits.new_empty((count, *logits.shape))
    for i in range(count):
        arena[i] = logits.roll(i, 0)
    return list(arena.unbind())


def random_ids(rows: int, length: int, vocab_size: int, seed: int = 1) -> torch.Tensor:
    """Returns (rows, length) int64: a history to penalise."""
    return torch.randint(vocab_size, (rows, length), generator=torch.Generator().manual_seed(seed))


def trace_file() -> Path | None:
    return next(iter(sorted(TRACES.glob("*.safetensors"))), None)


def load_traces() -> torch.Tensor:
    """Returns (rows, vocab_size) bfloat16: SmolLM2's logits as `record_traces.py` wrote them."""
    path = trace_file()
    if path is None:
        raise FileNotFoundError(f"no recorded logits in {TRACES}: run python -m benchmarks.record_traces")
    with safe_open(path, framework="pt") as file:
        logits: torch.Tensor = file.get_tensor("logits")
    return logits


def trace_metadata() -> dict[str, str]:
    """Returns model, text and positions of the recorded rows."""
    path = trace_file()
    if path is None:
        raise FileNotFoundError(f"no recorded logits in {TRACES}: run python -m benchmarks.record_traces")
    with safe_open(path, framework="pt") as file:
        return dict(file.metadata())


def load_smollm2() -> tuple[Any, Any]:
    """Returns (model, tokenizer) of the demo. The first call converts the model."""
    from pygen.cli.smollm2 import load

    model, tokenizer = load()
    return model.eval(), tokenizer
