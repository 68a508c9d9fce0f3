"""Runs every op once per setting at small shapes, for compute-sanitizer on a GPU.

python -m benchmarks.gpu_small_ops [--device cpu] [--backend NAME]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from typing import Any

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

SETTINGS: tuple[dict[str, Any], ...] = (
    {},
    {"do_sample": False},
    {"top_p": 0.9},
    {"temperature": 0.7, "top_k": 50, "top_p": 0.9, "repetition_penalty": 1.1},
    {"min_p": 0.1, "typical_p": 0.9, "no_repeat_ngram_size": 2},
    {"top_h": 0.7, "epsilon_cutoff": 1e-3, "eta_cutoff": 1e-3, "presence_penalty": 0.5, "frequency_penalty": 0.2},
)
# An aligned vocabulary, one with a remainder, and one split among several blocks.
VOCABULARIES = (64, 1003, 20011)
ROWS = 3


def inputs(vocab_size: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(vocab_size)
    logits = torch.randn(ROWS, vocab_size, generator=generator) * 3
    return logits.to(device, dtype), torch.randint(vocab_size, (ROWS, 40), generator=generator).to(device)


def draws(device: torch.device, backend: str) -> Iterator[str]:
    for vocab_size in VOCABULARIES:
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            logits, history = inputs(vocab_size, dtype, device)
            for settings in SETTINGS:
                sample(logits, input_ids=history, seed=1, logprobs=2, **settings, backend=backend)
                process_logits(logits, input_ids=history, **settings, backend=backend)
            token_logprobs(logits, history[:, 0].contiguous(), top=3, backend=backend)
            yield f"sample, process_logits and token_logprobs at {vocab_size} {dtype}"
        state = DecodeState.create(history, 4, eos_token_ids=[1])
        prepared = prepare_sample(logits, repetition_penalty=1.3, top_k=9, seed=1, state=state, backend=backend)
        for step in range(4):
            prepared(logits, step=step)
        yield f"a sequence of draws at {vocab_size}"


def searches(device: torch.device, backend: str) -> Iterator[str]:
    for settings in ({}, {"do_sample": True, "top_k": 20, "seed": 3}, {"repetition_penalty": 1.2}):
        for vocab_size in VOCABULARIES:
            state = BeamState.create(torch.ones(2, 3, dtype=torch.int64, device=device), 6, 4, eos_token_ids=[2])
            generator = torch.Generator().manual_seed(1)
            step_of = None
            for step in range(6):
                logits = torch.randn(state.rows, vocab_size, generator=generator).to(device)
                step_of = step_of or prepare_beam_step(logits, state, **settings, backend=backend)
                out = step_of(logits, step=step)
                cache = [torch.rand(state.rows, 2, 9, 8, device=device) for _ in range(2)]
                reorder_cache(cache, out.source_rows, 3, 3 + step, backend=backend)
            beam_finalize(state, 2, backend=backend)
            yield f"beam_step, reorder_cache and beam_finalize at {vocab_size} {settings}"


def drafts(device: torch.device, backend: str) -> Iterator[str]:
    for vocab_size in VOCABULARIES:
        logits, history = inputs(vocab_size, torch.float32, device)
        target = torch.stack([logits, logits.roll(1, 1), logits.roll(2, 1)], dim=1)
        draft_ids = history[:, :2].contiguous()
        verify_draft(target, draft_ids, seed=1, backend=backend)
        verify_draft(target, draft_ids, target[:, :2].contiguous(), seed=1, backend=backend)
        yield f"verify_draft at {vocab_size}"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Runs every op at small shapes.")
    parser.add_argument("--device", type=torch.device, default=torch.device("cuda"))
    parser.add_argument("--backend", default="auto")
    args = parser.parse_args(arguments)
    for job in (draws, searches, drafts):
        for line in job(args.device, args.backend):
            print(line, flush=True)
    if args.device.type == "cuda":
        torch.cuda.synchronize()
    return 0


if __name__ == "__main__":
    sys.exit(main())
