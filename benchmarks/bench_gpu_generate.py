"""Times whole `generate()` calls on a GPU, with random weights, against transformers eager and compiled.

python -m benchmarks.bench_gpu_generate --table     everything, which takes hours; see --seconds and the filters
python -m benchmarks.bench_gpu_generate --quick     two small layers; with --device cpu a rehearsal without a GPU

A job is one model, mode, batch and prompt length. A command may be killed at any time: it saves a job as soon as there
are times, and again with the counts of launches and waits.
"""

from __future__ import annotations

import math
import sys
import time
import traceback
from collections.abc import Sequence
from typing import Any

import torch
from tqdm import tqdm

from benchmarks import cli, gpu_counters, gpu_jobs, gpu_models
from benchmarks.gpu_calls import Bench
from benchmarks.gpu_jobs import ENGINES, MODES, NEW_TOKENS, NO_TIME
from benchmarks.harness import FLOOR_BACKEND, Options, Row
from benchmarks.machine import commit, device_slug, machine_block, today
from benchmarks.report import RESULTS, line_of, save_csv


def copy_row(options: Options, device: torch.device) -> Row:
    moved, speed = gpu_counters.copy_gb_per_s(device)
    return Row(
        f"{options.suite} copy", "copy", "", "random", 1, moved, "uint8", "copy", FLOOR_BACKEND, moved / speed / 1e3,
        bytes_moved=moved, gb_per_s=speed, device=str(device), commit=commit(), date=today(),
    )  # fmt: skip


def arguments(given: Sequence[str] | None) -> Any:
    parser = cli.parser("Times generate() on a GPU against transformers.", ("quick", "table"))
    parser.set_defaults(device=torch.device("cuda"))
    for name, choices in (("models", gpu_models.MODELS), ("modes", MODES), ("engines", ENGINES)):
        parser.add_argument(f"--{name}", nargs="+", choices=list(choices), default=list(choices))
    parser.add_argument("--batches", nargs="+", type=int, metavar="B")
    parser.add_argument("--prompts", nargs="+", type=int, metavar="TOKENS")
    parser.add_argument("--seconds", type=float, default=math.inf, help="start nothing new after this time")
    return parser.parse_args(given)


def main(given: Sequence[str] | None = None) -> int:
    args = arguments(given)
    if args.device.type == "cuda" and not torch.cuda.is_available():
        print("not run: torch finds no CUDA device")
        return 0
    deadline = time.monotonic() + args.seconds
    quick = args.size == "quick"
    options = cli.options(args, "gpu-generate", 0.0 if quick else 6.0, min_rounds=2 if quick else 3)
    # A captured call must be long enough to pay for its capture. No call on the CPU is.
    new_tokens = 8 if quick and args.device.type == "cpu" else NEW_TOKENS
    # The repository keeps the results of whole tables. A quick run is saved only into another folder.
    keep = not args.no_save and (not quick or args.results != RESULTS)
    path = args.results / f"{device_slug(args.device)}.csv"
    with cli.threads(args.threads):
        rows = [copy_row(options, args.device)]
        jobs = gpu_jobs.jobs_of(args, quick)
        shape: tuple[object, ...] = ()

        def save(found: list[Row]) -> None:
            if keep and any(row.median_us for row in found):
                save_csv(path, [rows[0], *found], machine_block(args.device))

        for job in tqdm(jobs, desc=options.suite, disable=args.quiet):
            engines, config = gpu_jobs.engines_of(job, args.engines), gpu_models.config_of(job.model, quick)
            reason = gpu_jobs.too_long(job, config, new_tokens) or (NO_TIME if time.monotonic() > deadline else "")
            if reason:
                rows += [gpu_jobs.blank_row(job, engine, config, options, args.device, reason) for engine in engines]
                continue
            if shape != (job.model, job.batch, job.prompt):
                # Otherwise torch would compile the second shape for all sizes, which makes it slower.
                torch.compiler.reset()
                shape = (job.model, job.batch, job.prompt)
            try:
                model = gpu_models.load(job.model, quick, args.device)
                bench = Bench(job, engines, model, new_tokens, rows[0].gb_per_s or math.inf, options)
                found = bench.rows(deadline, save)
            except Exception as error:
                traceback.print_exc(file=sys.stdout)
                note = f"not run: {type(error).__name__}: {error}".splitlines()[0]
                found = [gpu_jobs.blank_row(job, name, config, options, args.device, note) for name in engines]
            rows += found
            for row in found:
                tqdm.write(line_of(row))
            sys.stdout.flush()
        return cli.finish(rows, args, save=False)


if __name__ == "__main__":
    sys.exit(main())
