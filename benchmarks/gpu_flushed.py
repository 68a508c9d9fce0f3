"""Times single calls of `sample` and `beam_step` on a GPU whose second-level cache holds other data.

python -m benchmarks.gpu_flushed --table     vocabulary 151,936, bfloat16, 1 to 256 rows
python -m benchmarks.gpu_flushed --quick     a look; with --device cpu a rehearsal without a GPU

A model's forward leaves its weights in that cache. Here a kernel that writes twice the size of the cache takes its
place before every flushed call, and a kernel that waits before every warm call. Both hide the launch of the replay from
the two events around it. Two events without a call between them take time, too; the note of each row has it.
"""

from __future__ import annotations

import dataclasses
import functools
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from benchmarks import bench_beam_step, cli
from benchmarks.baseline import Settings
from benchmarks.bench_gpu import BATCHES, BEAM_VOCAB, FIRST, GREEDY, NUCLEUS, VOCAB, measured
from benchmarks.bench_sample import knobs_of
from benchmarks.gpu_jobs import NO_TIME
from benchmarks.gpu_ways import Job, backends_on, captured
from benchmarks.harness import Options, Row
from benchmarks.inputs import make_logits, random_ids
from benchmarks.machine import cache_bytes, device_slug, machine_block
from benchmarks.report import RESULTS, line_of, save_new
from pygen.ops import prepare_sample

CALLS = 60
WAIT_CYCLES = 60_000  # some 30 us
Call = Callable[[], object]
Work = tuple[Job, Callable[[], Call]]


def sample_work(settings: Settings, rows: int, vocab_size: int, backend: str, device: torch.device) -> Work:
    distribution = "normal5" if settings is NUCLEUS else "normal1"

    def make() -> Call:
        logits = make_logits(distribution, rows, vocab_size, torch.bfloat16).to(device)
        input_ids = random_ids(rows, settings.history, vocab_size).to(device)
        steps = torch.zeros(rows, dtype=torch.int64, device=device)
        noise = "philox" if settings.do_sample else "greedy"
        prepared = prepare_sample(logits, step=steps, **knobs_of(settings, noise, input_ids, backend))
        return lambda: prepared(logits)

    return Job("sample", settings.label, distribution, rows, vocab_size, torch.bfloat16, backend), make


def beam_work(num_beams: int, vocab_size: int, backend: str, device: torch.device) -> Work:
    spec = bench_beam_step.Spec(bench_beam_step.SEARCH, 1, num_beams, vocab_size)

    def make() -> Call:
        logits = make_logits("normal1", spec.rows, vocab_size, torch.bfloat16).to(device)
        search = bench_beam_step.RunningSearch(spec, logits, backend)
        return lambda: search.one_step(logits)

    return Job("beam_step", spec.label, "normal1", spec.rows, vocab_size, torch.bfloat16, backend), make


def hot_works(device: torch.device, small: bool) -> list[Work]:
    """Returns the three calls whose speed matters most, on the fastest backend."""
    backend, rows = backends_on(device)[0], 2 if small else 64
    vocab_size, beam_vocab = (1000, 1000) if small else (VOCAB, BEAM_VOCAB)
    first = dataclasses.replace(FIRST, history=64) if small else FIRST
    samples = [sample_work(settings, rows, vocab_size, backend, device) for settings in (first, NUCLEUS)]
    return [*samples, beam_work(rows, beam_vocab, backend, device)]


def works_of(device: torch.device, small: bool) -> Iterator[Work]:
    yield from hot_works(device, small)
    if small:
        return
    for settings in (FIRST, NUCLEUS, GREEDY):
        for rows in BATCHES:
            if rows != 64 or settings is GREEDY:
                yield sample_work(settings, rows, VOCAB, backends_on(device)[0], device)


def gpu_times_us(before: Call, call: Call) -> list[float]:
    """Returns the times of CALLS calls, each after `before`."""
    pairs = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(CALLS)]
    for start, end in pairs:
        before()
        start.record()
        call()
        end.record()
    torch.cuda.synchronize()
    return [1e3 * float(start.elapsed_time(end)) for start, end in pairs]


def cpu_times_us(before: Call, call: Call) -> list[float]:
    times = []
    for _ in range(CALLS):
        before()
        start = time.perf_counter_ns()
        call()
        times.append((time.perf_counter_ns() - start) / 1e3)
    return times


def rows_of(make: Callable[[], Call], device: torch.device, options: Options, job: Job) -> list[Row]:
    replay = captured(make(), device)
    on_gpu = device.type == "cuda"
    # A rehearsal need not wait for a processor's cache, which may be much larger.
    scratch = torch.empty(2 * cache_bytes(device) if on_gpu else 1 << 22, dtype=torch.uint8, device=device)

    def flush() -> None:
        scratch.fill_(1)

    def wait() -> None:
        if on_gpu:
            torch.cuda._sleep(WAIT_CYCLES)  # type: ignore[no-untyped-call]

    times_us = gpu_times_us if on_gpu else cpu_times_us
    nothing = statistics.median(times_us(wait, lambda: None))
    rows = []
    for cache, before in (("warm", wait), ("flushed", flush)):
        times_us(before, replay)  # warms up
        low, middle, high = statistics.quantiles(times_us(before, replay), n=4)
        row = job.row(options.suite, device, f"pygen {job.backend} {cache}", job.backend)
        row.median_us, row.spread_percent, row.calls, row.cache = middle, 100 * (high - low) / middle, CALLS, cache
        row.bytes_moved = job.rows * job.vocab_size * job.dtype.itemsize
        row.gb_per_s = row.bytes_moved / middle / 1e3
        row.note = f"events alone: {nothing:.1f} us"
        rows.append(row)
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    parser = cli.parser("Times single calls after a flush of the second-level cache.", ("quick", "table"))
    parser.set_defaults(device=torch.device("cuda"))
    parser.add_argument("--seconds", type=float, default=float("inf"), help="start no new case after this time")
    args: Any = parser.parse_args(arguments)
    if args.device.type == "cuda" and not torch.cuda.is_available():
        print("not run: torch finds no CUDA device")
        return 0
    small, deadline = args.size == "quick", time.monotonic() + args.seconds
    save = not args.no_save and (not small or args.results != RESULTS)
    rows: list[Row] = []
    with cli.threads(args.threads):
        options = cli.options(args, "gpu-flushed", 0.0)
        for job, make in works_of(args.device, small):
            if time.monotonic() > deadline:
                print(f"{job}: {NO_TIME}")
                continue
            found = measured((job, functools.partial(rows_of, make, args.device, options)), options, args.device)
            if save:
                save_new(args.results / f"{device_slug(args.device)}.csv", found, machine_block(args.device))
            print(*map(line_of, found), sep="\n", flush=True)
            rows += found
        return cli.finish(rows, args, save=False)


if __name__ == "__main__":
    sys.exit(main())
