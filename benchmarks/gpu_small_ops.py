"""Runs every op once per setting at small shapes, for compute-sanitizer on a GPU and for `gpu_smoke`.

python -m benchmarks.gpu_small_ops [--device cpu] [--backend NAME] [--ops sample beam_step] [--few]

The sanitizers slow a kernel down many times, so --few leaves the settings and shapes that run the main kernels once.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pygen.ops import (
    BeamState,
    DecodeState,
    beam_finalize,
    prepare_beam_step,
    prepare_sample,
    process_logits,
    reorder_cache,
    sample,
    token_logprobs,
    verify_draft,
)

FIRST: dict[str, Any] = {"temperature": 0.7, "top_k": 50, "top_p": 0.9, "repetition_penalty": 1.1}
SETTINGS: tuple[dict[str, Any], ...] = (
    FIRST,
    {"top_p": 0.9},
    {"do_sample": False},
    {},
    {"min_p": 0.1, "typical_p": 0.9, "no_repeat_ngram_size": 2},
    {"top_h": 0.7, "epsilon_cutoff": 1e-3, "eta_cutoff": 1e-3, "presence_penalty": 0.5, "frequency_penalty": 0.2},
)
SEARCHES: tuple[dict[str, Any], ...] = ({}, {"do_sample": True, "top_k": 20, "seed": 3}, {"repetition_penalty": 1.2})
# One split among several blocks, one with a remainder, and an aligned one.
VOCABULARIES = (20011, 1003, 64)
DTYPES = (torch.bfloat16, torch.float32, torch.float16)
# Few rows, and so many that kernels for many rows run.
SHAPES = ((3, 20011), (3, 1003), (160, 5003), (3, 64), (160, 20011))
STEPS = 6


# A call, and what it returned or changed.
Made = tuple[str, Any]


class Scope(NamedTuple):
    """What the ops run on: the same values on every device. `few` leaves the first settings and dtypes."""

    device: torch.device
    backend: str
    few: bool

    def of(self, every: Sequence[Any], fewest: int = 1) -> Sequence[Any]:
        return every[:fewest] if self.few else every

    def inputs(self, rows: int, vocab_size: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Returns logits and 40 ids per row."""
        generator = torch.Generator().manual_seed(vocab_size)
        logits = torch.randn(rows, vocab_size, generator=generator) * 3
        ids = torch.randint(vocab_size, (rows, 40), generator=generator)
        return logits.to(self.device, dtype), ids.to(self.device)

    def logits(self) -> Iterator[tuple[str, Tensor, Tensor]]:
        for rows, vocab_size in self.of(SHAPES, 3):
            for dtype in self.of(DTYPES):
                yield f"{rows} x {vocab_size} {dtype}", *self.inputs(rows, vocab_size, dtype)


def samples(scope: Scope) -> Iterator[Made]:
    for name, logits, history in scope.logits():
        for settings in scope.of(SETTINGS, 3):
            knobs = {"input_ids": history, "seed": 1, "logprobs": 2, **settings}
            yield f"sample at {name} {settings}", sample(logits, **knobs, backend=scope.backend)
    for vocab_size in scope.of(VOCABULARIES):
        logits, history = scope.inputs(3, vocab_size, torch.float32)
        state = DecodeState.create(history, 4, eos_token_ids=[1])
        knobs = {"repetition_penalty": 1.3, "top_k": 9, "seed": 1}
        prepared = prepare_sample(logits, **knobs, state=state, backend=scope.backend)
        for step in range(4):
            out = prepared(logits, step=step)
        yield f"a sequence of draws at {vocab_size}", out


def processed(scope: Scope) -> Iterator[Made]:
    for name, logits, history in scope.logits():
        for settings in scope.of(SETTINGS, 2):
            out = process_logits(logits, input_ids=history, **settings, backend=scope.backend)
            yield f"process_logits at {name} {settings}", out


def logprobs(scope: Scope) -> Iterator[Made]:
    for name, logits, history in scope.logits():
        for top in (0, 3):
            out = token_logprobs(logits, history[:, 0].contiguous(), top=top, backend=scope.backend)
            yield f"token_logprobs at {name}, top {top}", out


def drafts(scope: Scope) -> Iterator[Made]:
    for vocab_size in scope.of(VOCABULARIES, 2):
        logits, history = scope.inputs(3, vocab_size, torch.float32)
        target = torch.stack([logits, logits.roll(1, 1), logits.roll(2, 1)], dim=1)
        draft_ids = history[:, :2].contiguous()
        certain = verify_draft(target, draft_ids, seed=1, backend=scope.backend)
        drawn = verify_draft(target, draft_ids, logits[:, None].repeat(1, 2, 1), seed=1, backend=scope.backend)
        yield f"verify_draft at {vocab_size}", (certain, drawn)


def searches(scope: Scope) -> Iterator[Made]:
    for settings in scope.of(SEARCHES, 2):
        for vocab_size in scope.of(VOCABULARIES):
            state = BeamState.create(
                torch.ones(2, 3, dtype=torch.int64, device=scope.device), STEPS, 4, eos_token_ids=[2]
            )
            generator = torch.Generator().manual_seed(1)
            step_of = None
            for step in range(2 if scope.few else STEPS):
                logits = torch.randn(state.rows, vocab_size, generator=generator).to(scope.device)
                step_of = step_of or prepare_beam_step(logits, state, **settings, backend=scope.backend)
                out = step_of(logits, step=step)
            yield f"beam_step at {vocab_size} {settings}", (out, state.running_scores, state.tokens(step + 1))


def reorderings(scope: Scope) -> Iterator[Made]:
    for source in scope.of(([1, 1, 0, 3, 7, 5, 5, 5], list(range(8)))):
        rows = torch.tensor(source, dtype=torch.int64, device=scope.device)
        for dtype in scope.of(DTYPES):
            cache = [torch.arange(8.0 * 2 * 9 * 8).view(8, 2, 9, 8).to(scope.device, dtype) for _ in range(2)]
            reorder_cache(cache, rows, 3, 7, backend=scope.backend)
            yield f"reorder_cache by {source} {dtype}", cache


def finalized(scope: Scope) -> Iterator[Made]:
    """The search before it runs on the CPU, so that this op is the only kernel."""
    state = BeamState.create(torch.ones(2, 3, dtype=torch.int64), STEPS, 4, eos_token_ids=[2])
    generator = torch.Generator().manual_seed(1)
    for step in range(STEPS):
        logits = torch.randn(state.rows, 64, generator=generator)
        prepare_beam_step(logits, state, backend="torch")(logits, step=step)
    for name, value in vars(state).items():
        if isinstance(value, Tensor):
            object.__setattr__(state, name, value.to(scope.device))
    yield "beam_finalize", beam_finalize(state, 2, backend=scope.backend)


RUNS: dict[str, Callable[[Scope], Iterator[Made]]] = {
    "sample": samples,
    "beam_step": searches,
    "process_logits": processed,
    "token_logprobs": logprobs,
    "verify_draft": drafts,
    "reorder_cache": reorderings,
    "beam_finalize": finalized,
}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Runs every op at small shapes.")
    parser.add_argument("--device", type=torch.device, default=torch.device("cuda"))
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--ops", nargs="+", choices=list(RUNS), default=list(RUNS))
    parser.add_argument("--few", action="store_true", help="run the fewest calls that reach every kernel")
    args = parser.parse_args(arguments)
    for op in args.ops:
        for line, _ in RUNS[op](Scope(args.device, args.backend, args.few)):
            print(line, flush=True)
    if args.device.type == "cuda":
        torch.cuda.synchronize()
    return 0


if __name__ == "__main__":
    sys.exit(main())
