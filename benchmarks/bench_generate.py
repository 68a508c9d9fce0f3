"""Times `pygen.generate` against transformers' `generate()`, on a real model and on stubs with an empty forward.

python -m benchmarks.bench_generate --table     SmolLM2-135M-Instruct, 1 and 8 prompts
python -m benchmarks.bench_generate --quick     the stub models only
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from tqdm import tqdm

import pygen
from benchmarks import cli
from benchmarks.baseline import Settings
from benchmarks.cache_traffic import counted
from benchmarks.harness import BASELINE, Options, Row, Target, judge
from benchmarks.inputs import load_smollm2
from benchmarks.machine import commit, today
from benchmarks.memory import in_child, peak_temporary_bytes
from benchmarks.models import CachedLogits, FixedLogits, StubConfig
from benchmarks.record_traces import TEXT
from pygen.ops import prepare_sample

GREEDY = Settings(do_sample=False)
FIRST = Settings(temperature=0.7, repetition_penalty=1.1, top_k=50, top_p=0.9)
PROMPT_TOKENS = 64
SEED = 20
Generate = Callable[..., torch.Tensor]


class StepClock:
    """Marks the start and the end of every forward of `model` while the block runs.

    On a GPU it records events on the stream, so that nothing waits.
    """

    def __init__(self, model: torch.nn.Module, device: torch.device) -> None:
        self.model = model
        self.cuda = device.type == "cuda"
        self.marks: list[Any] = []

    def _mark(self, *_: object) -> None:
        if self.cuda:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self.marks.append(event)
        else:
            self.marks.append(time.perf_counter_ns())

    def __enter__(self) -> StepClock:
        self.handles = [
            self.model.register_forward_pre_hook(self._mark),
            self.model.register_forward_hook(self._mark),
        ]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()
        if self.cuda:
            torch.cuda.synchronize()

    def gaps_us(self) -> tuple[list[float], list[float]]:
        """Returns the microseconds in each forward after the prefill, and between each two forwards."""
        if self.cuda:
            gaps = [a.elapsed_time(b) * 1e3 for a, b in zip(self.marks, self.marks[1:], strict=False)]
        else:
            gaps = [(b - a) / 1e3 for a, b in zip(self.marks, self.marks[1:], strict=False)]
        return gaps[2::2], gaps[1::2]


def engines(model: Any) -> dict[str, Generate]:
    return {BASELINE: model.generate, "pygen": lambda **kwargs: pygen.generate(model, **kwargs)}


def bench(
    op: str, model: Any, input_ids: torch.Tensor, settings: Settings, new_tokens: int, target: Target,
    options: Options, **extra: Any,
) -> list[Row]:  # fmt: skip
    """Runs transformers and pygen in turn on one prompt tensor. The row is red unless their tokens agree."""
    knobs = {**settings.active, "do_sample": settings.do_sample, "max_new_tokens": new_tokens, **extra}
    knobs = {"top_k": 0, **knobs} if settings.do_sample else knobs
    run = engines(model)
    start = time.perf_counter()
    tokens = {name: generate_once(call, input_ids, knobs) for name, call in run.items()}
    rounds = max(2, min(8, int(options.budget_s / (time.perf_counter() - start))))
    same = torch.equal(tokens[BASELINE], tokens["pygen"])
    full = tokens["pygen"].shape[1] == input_ids.shape[1] + new_tokens
    check = "ok" if same and full else "the tokens are not those of transformers" if full else "stopped early"

    seconds: dict[str, list[float]] = {name: [] for name in run}
    forward: dict[str, list[float]] = {name: [] for name in run}
    outside: dict[str, list[float]] = {name: [] for name in run}
    order = list(run)
    shuffler = random.Random(options.seed)
    label = f"{op} {input_ids.shape[0]}"
    for _ in tqdm(range(rounds), desc=label, leave=False, disable=not options.progress):
        shuffler.shuffle(order)
        for name in order:
            start = time.perf_counter()
            with StepClock(model, input_ids.device) as clock:
                generate_once(run[name], input_ids, knobs)
            seconds[name].append(time.perf_counter() - start)
            inside, between = clock.gaps_us()
            forward[name] += inside
            outside[name] += between

    ran = prepare_sample(torch.zeros(1, 8, device=input_ids.device), seed=SEED).backend
    rows = []
    for name in run:
        row = Row(
            options.suite, op, settings.label, "model", input_ids.shape[0], model.config.vocab_size,
            "float32", name, "torch" if name == BASELINE else ran,
            calls=len(outside[name]), check=check if name == "pygen" else "",
            threads=torch.get_num_threads(), device=str(input_ids.device), commit=commit(), date=today(),
        )  # fmt: skip
        fill(row, forward[name], outside[name], seconds[name], input_ids.shape[0] * new_tokens)
        rows.append(row)
    compare(rows, target)
    return rows


def generate_once(call: Generate, input_ids: torch.Tensor, knobs: Mapping[str, Any]) -> torch.Tensor:
    torch.manual_seed(SEED)
    with torch.inference_mode():
        result = call(input_ids=input_ids, attention_mask=torch.ones_like(input_ids), **knobs)
    return result if isinstance(result, torch.Tensor) else result.sequences


def fill(row: Row, forward: Sequence[float], outside: Sequence[float], seconds: Sequence[float], tokens: int) -> None:
    """Sets the times of `row` in place. `outside_percent` relates the time outside the forward to the time in it."""
    row.forward_us = statistics.median(forward)
    row.outside_us = statistics.median(outside)
    row.median_us = row.forward_us + row.outside_us
    row.outside_percent = 100 * row.outside_us / row.forward_us
    row.tokens_per_s = tokens / statistics.median(seconds)


def compare(rows: Sequence[Row], target: Target) -> None:
    """Sets pygen's ratio to transformers in tokens per second, prompt included, and judges its target.

    A red row gets no ratio.
    """
    baseline, row = rows
    if not row.red and row.tokens_per_s and baseline.tokens_per_s:
        row.speedup = row.tokens_per_s / baseline.tokens_per_s
    judge(row, target)


def empty_model_rows(options: Options) -> list[Row]:
    torch.manual_seed(SEED)
    model = FixedLogits(StubConfig())
    model.train(False)
    prompt = torch.ones(1, 1, dtype=torch.int64)
    rows = []
    for settings in (GREEDY, FIRST):
        rows += bench("generate loop", model, prompt, settings, 256, Target(time_us=60), options, use_cache=False)
    for row in rows:
        # The forward is empty here, so a share of it means nothing.
        row.outside_percent = None
    return rows


def model_rows(options: Options) -> list[Row]:
    model, tokenizer = load_smollm2()
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    ids = torch.tensor(tokenizer(TEXT).input_ids)
    rows = []
    stride = (len(ids) - PROMPT_TOKENS) // 8
    prompts = torch.stack([ids[i * stride : i * stride + PROMPT_TOKENS] for i in range(8)])
    for count, target in ((1, Target()), (8, Target(outside_percent=3))):
        rows += bench("generate", model, prompts[:count], FIRST, 48, target, options)
    beams = Target(speedup=1.3)
    return rows + bench("generate, 4 beams", model, prompts[:4], GREEDY, 64, beams, options, num_beams=4)


BEAMS: dict[str, Any] = {"max_new_tokens": 128, "num_beams": 4, "do_sample": False, "pad_token_id": 0}


def model_with_a_cache() -> tuple[Any, torch.Tensor]:
    """Returns a stub with a cache of GPT-2 124M's shape, and eight prompts."""
    torch.manual_seed(SEED)
    model = CachedLogits(StubConfig(vocab_size=50257, layers=12, heads=12, head_dim=64))
    model.train(False)
    return model, torch.randint(1000, (8, 32), generator=torch.Generator().manual_seed(SEED))


def beam_rows(options: Options, threads: int) -> list[Row]:
    """Measures four beams: time outside the forward, bytes moved between cache rows, and peak memory.

    A separate process measures the peak, which includes the cache.
    """
    model, prompts = model_with_a_cache()
    rows = bench("generate loop, 4 beams", model, prompts, GREEDY, 128, Target(), options, num_beams=4, pad_token_id=0)
    baseline, row = rows
    for one in rows:
        with counted() as count:
            generate_once(engines(model)[one.variant], prompts, BEAMS)
        one.bytes_moved = count.bytes
        one.memory_bytes = in_child("benchmarks.bench_generate", one.variant, "--threads", str(threads))
        # The forward does nothing here.
        one.outside_percent = None
    if not row.red and row.outside_us and baseline.outside_us and row.bytes_moved and baseline.bytes_moved:
        row.outside_speedup = baseline.outside_us / row.outside_us
        row.cache_share = row.bytes_moved / baseline.bytes_moved
    judge(row, Target(outside_speedup=15, cache_share=0.2, memory_bytes=baseline.memory_bytes))
    return rows


def output_rows(options: Options) -> list[Row]:
    """Times calls that return their cache: 64 + 64 tokens, of eight prompts.

    With drafts it is one prompt, because transformers drafts for one only.
    """
    model, _ = model_with_a_cache()
    prompts = torch.randint(1000, (8, PROMPT_TOKENS), generator=torch.Generator().manual_seed(SEED))
    knobs: dict[str, Any] = {"pad_token_id": 0, "return_dict_in_generate": True}
    sampling = Settings(temperature=0.7)
    rows = bench("with outputs, 4 beams", model, prompts, GREEDY, 64, Target(speedup=8), options, num_beams=4, **knobs)
    rows += bench("with outputs", model, prompts, sampling, 64, Target(speedup=8), options, **knobs)
    rows += bench(
        "with outputs, drafts", model, prompts[:1], GREEDY, 64, Target(), options, assistant_model=model, **knobs
    )
    for row in rows:
        # The forward does nothing here.
        row.outside_percent = None
    return rows


def memory_of(name: str) -> int | None:
    model, prompts = model_with_a_cache()
    call = engines(model)[name]
    generate_once(call, prompts[:1], {**BEAMS, "max_new_tokens": 2})
    return peak_temporary_bytes(lambda: generate_once(call, prompts, BEAMS))


def main() -> int:
    parser = cli.parser("Times pygen.generate against transformers.", ("quick", "table"))
    parser.add_argument("--memory-of", choices=(BASELINE, "pygen"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    with cli.threads(args.threads):
        if args.memory_of:
            print(json.dumps(memory_of(args.memory_of)))
            return 0
        options = cli.options(args, "generate", 40.0)
        rows = empty_model_rows(options)
        if args.size == "table":
            rows += beam_rows(options, args.threads)
            rows += output_rows(options)
            rows += model_rows(options)
        return cli.finish(rows, args, save=args.size == "table")


if __name__ == "__main__":
    sys.exit(main())
