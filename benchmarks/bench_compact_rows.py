"""Times `pygen.generate` where rows that have ended leave the batch, against the same call where they stay.

python -m benchmarks.bench_compact_rows            SmolLM2-135M-Instruct, 32 rows whose lengths differ eightfold
python -m benchmarks.bench_compact_rows --steps    forwards over 1 to 32 rows, and the copy of the cache
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from tqdm import tqdm
from transformers import DynamicCache

import pygen
from benchmarks import cli
from benchmarks.inputs import load_smollm2
from benchmarks.record_traces import TEXT
from pygen.models.growing_layer import grow_in_place

ROWS, PROMPT_TOKENS = 32, 32
SHORTEST, LONGEST = 8, 64
SEED = 20
Clock = Callable[[], float]


def lengths() -> torch.Tensor:
    """(ROWS,): from SHORTEST to LONGEST, evenly spaced on a logarithmic scale, in a fixed random order."""
    spaced = torch.logspace(0, 1, ROWS, base=LONGEST / SHORTEST, dtype=torch.float64) * SHORTEST
    return spaced.round().long()[torch.randperm(ROWS, generator=torch.Generator().manual_seed(SEED))]


class Ends:
    """A stopping criterion that ends row r after `lengths[r]` tokens."""

    def __init__(self) -> None:
        self.ends = lengths() + PROMPT_TOKENS

    def __call__(self, input_ids: torch.Tensor, scores: object) -> torch.Tensor:
        return input_ids.shape[1] >= self.ends


def call(model: Any, prompts: torch.Tensor, compact_rows: bool, clock: Clock) -> tuple[float, torch.Tensor]:
    """The seconds and the tokens of one call."""
    knobs: dict[str, Any] = {"do_sample": True, "temperature": 0.7, "top_p": 0.9, "top_k": 0, "seed": SEED}
    start = clock()
    tokens = pygen.generate(
        model,
        prompts,
        attention_mask=torch.ones_like(prompts),
        max_new_tokens=LONGEST,
        # An id that no text contains, so that only the criterion ends rows.
        eos_token_id=model.config.vocab_size - 1,
        pad_token_id=0,
        stopping_criteria=[Ends()],
        compact_rows=compact_rows,
        **knobs,
    )
    assert isinstance(tokens, torch.Tensor)
    return clock() - start, tokens


def compare(model: Any, tokenizer: Any, rounds: int, progress: bool, clock: Clock) -> dict[str, Any]:
    """Interleaved calls: the median of the ratios, the seconds of both, and how many rows have the same tokens."""
    ids = torch.tensor(tokenizer(TEXT).input_ids)
    stride = (len(ids) - PROMPT_TOKENS) // ROWS
    prompts = torch.stack([ids[i * stride : i * stride + PROMPT_TOKENS] for i in range(ROWS)])
    times: dict[bool, list[float]] = {True: [], False: []}
    for number in tqdm(range(rounds), disable=not progress):
        tokens = {}
        for compact_rows in (True, False) if number % 2 else (False, True):
            seconds, tokens[compact_rows] = call(model, prompts, compact_rows, clock)
            times[compact_rows].append(seconds)
    ratios = [stay / leave for leave, stay in zip(times[True], times[False], strict=True)]
    return {
        "speedup": statistics.median(ratios),
        "speedups": ratios,
        "leave_s": statistics.median(times[True]),
        "stay_s": statistics.median(times[False]),
        "row_steps_left_out": 1 - float(lengths().sum()) / (ROWS * LONGEST),
        "rows_with_equal_tokens": int((tokens[True] == tokens[False]).all(1).sum()),
    }


def step_costs(model: Any, length: int = 128, repeats: int = 9) -> dict[int, tuple[float, float]]:
    """By rows: the milliseconds of a forward, and of a copy of the cache without a quarter of the rows."""
    config, costs = model.config, {}
    for rows in (32, 24, 16, 12, 8, 6, 5, 4, 3, 2, 1):
        cache = DynamicCache()
        grow_in_place(cache, length + repeats + 1)
        for number in range(config.num_hidden_layers):
            shape = (rows, config.num_key_value_heads, length, config.head_dim)
            cache.update(torch.randn(shape), torch.randn(shape), number)
        ids, forwards, copies = torch.ones((rows, 1), dtype=torch.int64), [], []
        for step in range(repeats):
            mask = torch.ones((rows, length + step + 1), dtype=torch.int64)
            start = time.perf_counter()
            model(input_ids=ids, attention_mask=mask, past_key_values=cache, logits_to_keep=1)
            forwards.append(time.perf_counter() - start)
            kept = torch.arange(max(rows * 3 // 4, 1))
            start = time.perf_counter()
            layers: Any = cache.layers
            for layer in layers:
                layer.keys.index_select(0, kept)
                layer.values.index_select(0, kept)
            copies.append(time.perf_counter() - start)
        costs[rows] = (1e3 * min(forwards), 1e3 * min(copies))
    return costs


def main() -> None:
    parser = argparse.ArgumentParser(description="Rows that have ended leave the batch, or stay.")
    parser.add_argument("--steps", action="store_true", help="time single forwards")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cpu-time", action="store_true", help="measure CPU time, with --threads 1 on a busy machine")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    args = parser.parse_args()
    with cli.threads(args.threads), torch.inference_mode():
        model, tokenizer = load_smollm2()
        if args.steps:
            for rows, (forward, copy) in step_costs(model).items():
                print(f"{rows:2} rows: forward {forward:6.1f} ms, copy of the cache {copy:5.1f} ms")
        else:
            clock = time.process_time if args.cpu_time else time.perf_counter
            print(json.dumps(compare(model, tokenizer, args.rounds, not args.quiet, clock), indent=1))


if __name__ == "__main__":
    main()
