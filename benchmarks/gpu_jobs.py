"""The rows of `bench_gpu_generate`: models, modes, sizes and engines, their order and their targets."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

import pygen
from benchmarks import gpu_models
from benchmarks.harness import BASELINE, Options, Row, Target
from benchmarks.machine import commit, today
from pygen.graph.eligibility import LEAST_STEPS

NEW_TOKENS = LEAST_STEPS
MODES: dict[str, dict[str, Any]] = {
    "greedy": {"do_sample": False},
    "sampling": {"do_sample": True, "temperature": 0.7, "top_k": 50, "top_p": 0.9},
    "beams": {"do_sample": False, "num_beams": 4},
}
STATIC = "transformers static"
# variant name, and the arguments that it adds to a call
ENGINES: dict[str, tuple[str, dict[str, Any]]] = {
    "transformers": (BASELINE, {}),
    # transformers compiles the decoding forward by itself if the cache is static.
    "static": (STATIC, {"cache_implementation": "static"}),
    "pygen": ("pygen", {"runtime": "auto"}),
    "eager": ("pygen eager", {"runtime": "eager"}),
    "compiled": ("pygen compiled", {"runtime": "auto", "compile_config": pygen.CompileConfig()}),
}
CAPTURED = ("pygen", "compiled")
NO_TIME = "not run: no time left"


@dataclasses.dataclass(frozen=True)
class Job:
    model: str
    mode: str
    batch: int
    prompt: int

    def __str__(self) -> str:
        label = "4 beams" if self.mode == "beams" else self.mode
        return f"{gpu_models.MODELS[self.model][0]}, {label}, {self.prompt:,} tokens"


# Targets on an H200: engines, the jobs they apply to, and the target. Several may apply to one row.
TARGETS: tuple[tuple[tuple[str, ...], Callable[[Job], bool], Target], ...] = (
    (CAPTURED, lambda job: job.mode != "beams", Target(launches_beyond_forward=1)),
    (CAPTURED, lambda job: job.mode == "beams", Target(launches_beyond_forward=3)),
    (CAPTURED, lambda job: True, Target(syncs_beyond_forward=0, unreleased_bytes=0)),
    (("pygen",), lambda job: True, Target(capture_s=2)),
    (("pygen",), lambda job: _one_row(job, "gpt2"), Target(speedup=8)),
    (("pygen",), lambda job: _one_row(job, "llama"), Target(speedup=5, copy_percent=45)),
    (("compiled",), lambda job: _one_row(job, "llama"), Target(static_speedup=1.3, copy_percent=65)),
    (("pygen",), lambda job: _eight_searches(job), Target(speedup=10)),
)


def _one_row(job: Job, model: str) -> bool:
    return job.model == model and job.batch == 1 and job.mode != "beams"


def _eight_searches(job: Job) -> bool:
    return (job.model, job.mode, job.batch) == ("gpt2", "beams", 8)


def target_of(job: Job, engine: str) -> Target:
    found = Target()
    for engines, holds, target in TARGETS:
        if engine in engines and holds(job):
            given = {name: value for name, value in dataclasses.asdict(target).items() if value is not None}
            found = dataclasses.replace(found, **given)
    return found


def in_order(jobs: Iterable[Job]) -> list[Job]:
    """Sorts jobs by importance: one row without beams, then GPT-2 with four beams and eight prompts, then the rest."""
    models, modes = list(gpu_models.MODELS), list(MODES)

    def rank(job: Job) -> tuple[int, ...]:
        if job.batch == 1 and job.mode != "beams":
            first = 0
        else:
            first = 1 if _eight_searches(job) else 2
        return first, job.prompt, job.batch, models.index(job.model), modes.index(job.mode)

    return sorted(jobs, key=rank)


def jobs_of(args: argparse.Namespace, quick: bool) -> list[Job]:
    batches = args.batches or ((2,) if quick else (1, 8, 64))
    prompts = args.prompts or ((4, 96) if quick else (32, 1024))
    return in_order(Job(*job) for job in itertools.product(args.models, args.modes, batches, prompts))


def engines_of(job: Job, asked: Sequence[str]) -> list[str]:
    """Returns the requested engines that can run `job`. transformers has no static cache for beams."""
    return [engine for engine in asked if engine != "static" or job.mode != "beams"]


def blank_row(job: Job, engine: str, config: Any, options: Options, device: torch.device, note: str = "") -> Row:
    return Row(
        f"{options.suite} {job}, {job.batch}", "generate", str(job), "random", job.batch, config.vocab_size,
        str(gpu_models.DTYPE).removeprefix("torch."), ENGINES[engine][0], "gpu" if device.type == "cuda" else "cpu",
        note=note, threads=torch.get_num_threads(), device=str(device), commit=commit(), date=today(),
    )  # fmt: skip


def too_long(job: Job, config: Any, new_tokens: int) -> str:
    limit = gpu_models.positions(config)
    if limit is None or job.prompt + new_tokens <= limit:
        return ""
    return f"not run: {job.prompt:,} + {new_tokens} tokens, the model has {limit:,} positions"
