"""Times `pygen.generate_batch` on SmolLM2-135M-Instruct against the ways that users of transformers have.

python -m benchmarks.bench_generate_batch --table      256 prompts, in interleaved parts
python -m benchmarks.bench_generate_batch --tokens     compares every answer with a separate call, and shows near ties
python -m benchmarks.bench_generate_batch --memory     10,000 short prompts through a small model: memory over time
python -m benchmarks.bench_generate_batch --device cuda --model llama --rows 64     Llama 1B in bfloat16, random weights

The ways: batches of 8 prompts sorted by length through transformers' `generate()`, whose rows end by a criterion and
run on until the last one ends; transformers' `generate_batch`; and `pygen.generate_batch` with 8 rows. All draw
with temperature 0.7 and top-p 0.9, and count the same tokens.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from tqdm import tqdm

import pygen
from benchmarks import gpu_models
from benchmarks.batch_workload import Job, jobs
from benchmarks.inputs import load_smollm2
from benchmarks.machine import machine_block
from benchmarks.record_traces import TEXT

KNOBS: dict[str, Any] = {"do_sample": True, "temperature": 0.7, "top_p": 0.9, "top_k": 0}
Run = Callable[[Sequence[Job]], int]


class EndsAt:
    """A criterion that ends row r after its own number of tokens."""

    def __init__(self, prompt_length: int, new_tokens: Sequence[int]) -> None:
        self._last = torch.tensor([prompt_length + count for count in new_tokens])

    def __call__(self, input_ids: torch.Tensor, scores: object, **_: object) -> torch.Tensor:
        return (input_ids.shape[1] >= self._last).to(input_ids.device)


def sorted_batches(model: Any, part: Sequence[Job], rows: int) -> int:
    """transformers' `generate()` over batches of prompts of similar length."""
    ordered = sorted(part, key=lambda job: len(job.input_ids))
    for first in range(0, len(ordered), rows):
        batch = ordered[first : first + rows]
        longest = max(len(job.input_ids) for job in batch)
        padding = [longest - len(job.input_ids) for job in batch]
        ids = torch.tensor([[0] * pad + job.input_ids for pad, job in zip(padding, batch, strict=True)])
        mask = torch.tensor([[0] * pad + [1] * (longest - pad) for pad in padding])
        most = max(job.new_tokens for job in batch)
        ends = EndsAt(longest, [job.new_tokens for job in batch])
        model.generate(ids, attention_mask=mask, max_new_tokens=most, stopping_criteria=[ends], pad_token_id=0, **KNOBS)
    return sum(job.new_tokens for job in part)


def transformers_batch(model: Any, part: Sequence[Job]) -> int:
    """transformers' `generate_batch`, which takes one length for all: prompts of equal lengths go together."""
    manager = model.init_continuous_batching(generation_config=_their_config(model))
    manager.start()
    try:
        for number, job in enumerate(part):
            manager.add_request(job.input_ids, request_id=str(number), max_new_tokens=job.new_tokens)
        ended = tokens = 0
        while ended < len(part):
            result = manager.get_result(timeout=600)
            if result is not None and result.is_finished():
                ended += 1
                tokens += len(result.generated_tokens)
        return tokens
    finally:
        manager.stop(block=True)


def _their_config(model: Any) -> Any:
    from transformers import GenerationConfig

    return GenerationConfig(eos_token_id=-1, pad_token_id=0, max_new_tokens=256, **KNOBS)


def pygen_batch(model: Any, part: Sequence[Job], rows: int) -> int:
    tokens = 0
    for result in pygen.generate_batch(model, [job.as_prompt() for job in part], rows=rows, as_completed=True, **KNOBS):
        if result.error is not None:
            raise result.error
        tokens += len(result.token_ids)
    return tokens


def ways(model: Any, rows: int) -> dict[str, Run]:
    return {
        "transformers, sorted batches": lambda part: sorted_batches(model, part, rows),
        "transformers generate_batch": lambda part: transformers_batch(model, part),
        "pygen.generate_batch": lambda part: pygen_batch(model, part, rows),
    }


def table(model: Any, text_ids: list[int], count: int, parts: int, rows: int, progress: bool) -> None:
    """Prints the tokens per second of every way over interleaved parts of the workload, and pygen's ratios."""
    work = jobs(text_ids, count)
    slices = [work[part::parts] for part in range(parts)]
    runs = ways(model, rows)
    speeds: dict[str, list[float]] = {name: [] for name in runs}
    order = [*runs]
    shuffler = random.Random(0)
    for part in tqdm(slices, desc="parts", disable=not progress):
        shuffler.shuffle(order)
        for name in order:
            start = time.perf_counter()
            tokens = runs[name](part)
            speeds[name].append(tokens / (time.perf_counter() - start))
    tokens = sum(job.new_tokens for job in work)
    print(f"{count} prompts, {sum(len(job.input_ids) for job in work)} prompt ids, {tokens} new tokens, {rows} rows")
    for name, values in speeds.items():
        ratios = [own / other for own, other in zip(speeds["pygen.generate_batch"], values, strict=True)]
        print(
            f"{name:32} {statistics.median(values):7.1f} tokens/s   pygen is {statistics.median(ratios):.2f}x "
            f"({min(ratios):.2f} to {max(ratios):.2f})"
        )
    steps(model, slices[0], rows)


def steps(model: Any, part: Sequence[Job], rows: int) -> None:
    """Prints the share of useless row-steps and of the time outside the forward."""
    from pygen.batch.batch import Batch
    from pygen.batch.forward import BatchForward
    from pygen.batch.request import make_request

    inside = 0.0
    read = BatchForward.read

    def timed(self: BatchForward, *args: Any, **kwargs: Any) -> torch.Tensor:
        nonlocal inside
        start = time.perf_counter()
        result = read(self, *args, **kwargs)
        inside += time.perf_counter() - start
        return result

    with mock.patch.object(BatchForward, "read", timed):
        batch = Batch(model, rows=rows, runtime="auto")
        for number, job in enumerate(part):
            batch.add(make_request(model, job.as_prompt(), index=number, settings=KNOBS))
        full = []
        with torch.no_grad():
            while batch.is_busy:
                before, tokens, busy = inside, batch.stats.prompt_positions, time.perf_counter()
                batch.step()
                whole = time.perf_counter() - busy
                if batch.stats.prompt_positions == tokens:
                    full.append((whole - (inside - before)) / (inside - before))
    stats = batch.stats
    useful = stats.tokens - len(part)
    print(f"row-steps that computed nothing useful: {100 * (1 - useful / stats.row_steps):.2f} %")
    print(f"time outside the forward, steps that read no prompt: median {100 * statistics.median(full):.2f} % of it")


def tokens(model: Any, text_ids: list[int], count: int, rows: int, progress: bool) -> bool:
    """Compares the answers with separate calls. Prints where they part, with the gap of the two best scores."""
    work = jobs(text_ids, count)
    prompts = [{**job.as_prompt(), "output_logprobs": True} for job in work]
    results = pygen.generate_batch(model, prompts, rows=rows, progress=progress, **KNOBS)
    near = wrong = 0
    for job, result in zip(work, results, strict=True):
        ids = torch.tensor([job.input_ids], device=model.device)
        alone: Any = pygen.generate(
            model, ids, max_new_tokens=job.new_tokens, seed=job.seed, return_dict_in_generate=True,
            output_scores=True, output_logprobs=True, **KNOBS,
        )  # fmt: skip
        own = alone.sequences[0, ids.shape[1] :].tolist()
        if own == result.token_ids:
            continue
        step = next(n for n, (a, b) in enumerate(zip(own, result.token_ids, strict=False)) if a != b)
        noise = pygen.rng.philox_exponential(
            torch.tensor([pygen.rng.as_int64(pygen.rng.row_seed(job.seed, 0))]), torch.tensor([step]),
            alone.scores[step].shape[1],
        )  # fmt: skip
        raced = alone.scores[step][0].cpu() - noise[0].log()
        gap = float(raced[own[step]] - raced[result.token_ids[step]])
        is_near = gap < 1e-3
        near, wrong = near + is_near, wrong + (not is_near)
        print(f"prompt {result.index}, step {step}: {own[step]} and {result.token_ids[step]}, apart by {gap:.2e}")
    print(f"{count} prompts: {count - near - wrong} with equal tokens, {near} part at a near tie, {wrong} differ")
    return wrong == 0


def memory(count: int, progress: bool) -> None:
    """Prints the resident memory while short prompts pass through 8 rows of a small model."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=1000, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    source = random.Random(0)
    prompts = (
        {"input_ids": [source.randrange(1, 1000) for _ in range(source.randrange(1, 24))], "seed": n}
        for n in range(count)
    )
    results = pygen.generate_batch(model, prompts, rows=8, max_new_tokens=8, **KNOBS)
    for number, _ in enumerate(tqdm(results, total=count, disable=not progress), 1):
        if number in (100, 500) or number % max(count // 10, 1) == 0:
            print(f"{number:6} prompts: {resident_bytes() / 2**20:7.1f} MiB")


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    group = parser.add_mutually_exclusive_group()
    for name in ("table", "tokens", "memory"):
        group.add_argument(f"--{name}", dest="what", action="store_const", const=name)
    parser.set_defaults(what="table")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--model", choices=("smollm2", "gpt2", "llama", "qwen2"), default="smollm2")
    parser.add_argument("--rows", type=int, default=8, help="texts at a time")
    parser.add_argument("--count", type=int, help="prompts; 256, or 10,000 with --memory")
    parser.add_argument("--parts", type=int, default=4, help="parts of the workload that the ways run in turn")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    if args.what == "memory":
        memory(args.count or 10_000, not args.quiet)
        return 0
    print(machine_block(args.device))
    model, text_ids = load(args.model, args.device)
    if args.what == "tokens":
        return 0 if tokens(model, text_ids, args.count or 256, args.rows, not args.quiet) else 1
    table(model, text_ids, args.count or 256, args.parts, args.rows, not args.quiet)
    return 0


def load(name: str, device: torch.device) -> tuple[Any, list[int]]:
    """A model without an end token, and the ids of a long text."""
    if name != "smollm2":
        source = random.Random(1)
        return gpu_models.load(name, device.type == "cpu", device), [source.randrange(1, 500) for _ in range(4096)]
    model, tokenizer = load_smollm2()
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model.to(device), tokenizer(TEXT).input_ids * 4


if __name__ == "__main__":
    sys.exit(main())
