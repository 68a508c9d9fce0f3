"""Times one step from logits to tokens on a GPU: graph replay and eager calls of both GPU backends, against
transformers and, where it can be imported, FlashInfer.

python -m benchmarks.bench_gpu --table     the figures with targets first, then others
python -m benchmarks.bench_gpu --quick     a look, in seconds; with --device cpu a rehearsal without a GPU

A command may be killed at any time: it saves every case as soon as it is measured. A backend that cannot run a case
costs that case only, and the row says why.
"""

from __future__ import annotations

import dataclasses
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from tqdm import tqdm

from benchmarks import bench_beam_step, cli
from benchmarks.baseline import Settings, TransformersStep
from benchmarks.bench_sample import Spec, check_tokens, knobs_of
from benchmarks.gpu_jobs import NO_TIME
from benchmarks.gpu_ways import Job, Way, backends_on, both_ways, flashinfer_call, timed
from benchmarks.harness import BASELINE, Options, Row, Target
from benchmarks.inputs import make_logits, random_ids, rotation
from benchmarks.machine import device_slug, machine_block
from benchmarks.report import RESULTS, line_of, save_new
from pygen.backends import BackendError
from pygen.ops import prepare_sample

VOCAB = 151936
BEAM_VOCAB = 128256
PENALISED = 1024
FIRST = Settings(temperature=0.7, repetition_penalty=1.1, top_k=50, top_p=0.9, history=PENALISED)
NUCLEUS = Settings(top_p=0.9)
GREEDY = Settings(do_sample=False)
FREE = Settings()
BATCHES = (1, 8, 64, 256)
# By backend, settings and dtype: microseconds at the rows of BATCHES.
Targets = dict[tuple[str, Settings, torch.dtype], tuple[float | None, ...]]
# On an H200, in the order of importance.
US: Targets = {
    ("cuda", FIRST, torch.bfloat16): (8, 8, 12, 32),
    ("cuda", NUCLEUS, torch.bfloat16): (8, 8, 14, 34),
    ("cuda", GREEDY, torch.bfloat16): (5, 5, 9, 24),
    ("triton", FIRST, torch.bfloat16): (15, None, 40, 110),
}
LATER_US: Targets = {
    ("cuda", FIRST, torch.float32): (10, 12, 30, 100),
    ("cuda", FREE, torch.bfloat16): (None, None, None, None),
}
BEAMS_US = {"cuda": 22.0, "triton": 60.0}
# At 64 rows, over transformers.
SPEEDUPS = {"cuda": 50.0, "triton": 30.0}
FLASHINFER_SPEEDUP = 2.0
MOST_BUFFERS = 256

Work = tuple[Job, Callable[[Job], list[Row]]]


def sample_work(settings: Settings, dtype: torch.dtype, rows: int, vocab_size: int, backend: str,
                limit_us: float | None, device: torch.device, options: Options) -> Work:  # fmt: skip
    """Times `sample` at one shape on one backend."""
    spec = Spec(settings, rows, vocab_size, dtype, "normal5" if settings is NUCLEUS else "normal1")
    noise = "philox" if settings.do_sample else "greedy"

    def rows_of(job: Job) -> list[Row]:
        logits = make_logits(spec.distribution, rows, vocab_size, dtype).to(device)
        input_ids = random_ids(rows, settings.history, vocab_size).to(device)
        steps = torch.zeros(rows, dtype=torch.int64, device=device)
        prepared = prepare_sample(logits, step=steps, **knobs_of(settings, noise, input_ids, backend))
        fault = check_tokens(spec, logits, input_ids, noise, backend)
        buffers = rotation(logits, "cold", MOST_BUFFERS)
        step = TransformersStep(settings, input_ids)
        ways = [Way(BASELINE, "torch", lambda: [step.tokens(buffer) for buffer in buffers])]
        theirs = flashinfer_call(settings) if device.type == "cuda" else None
        wanted = limit_us is not None and settings.do_sample
        target = Target(
            time_us=limit_us,
            speedup=SPEEDUPS.get(backend) if rows == 64 and wanted else None,
            flashinfer_speedup=FLASHINFER_SPEEDUP if theirs is not None and backend == "cuda" and wanted else None,
        )
        ways += both_ways(backend, prepared, buffers, target, fault)
        if theirs is not None:
            ways += both_ways("flashinfer", theirs, buffers, Target(), "")
        moved = logits.numel() * logits.element_size() + 12 * rows
        return timed(job, buffers, ways, moved, options)

    return Job("sample", settings.label, spec.distribution, rows, vocab_size, dtype, backend), rows_of


def beam_work(num_beams: int, batch_size: int, vocab_size: int, backend: str, limit_us: float | None,
              device: torch.device, options: Options) -> Work:  # fmt: skip
    """Times `beam_step`, repeating one step."""
    spec = bench_beam_step.Spec(bench_beam_step.SEARCH, batch_size, num_beams, vocab_size)

    def rows_of(job: Job) -> list[Row]:
        logits = make_logits("normal1", spec.rows, vocab_size, torch.bfloat16).to(device)
        search = bench_beam_step.RunningSearch(spec, logits, backend)
        buffers = rotation(logits, "cold", MOST_BUFFERS)
        theirs = bench_beam_step.TransformersBeams(spec, search.state)
        fault = bench_beam_step.check_step(spec, search, theirs, logits)
        ways = [Way(BASELINE, "torch", lambda: [theirs.candidates(buffer) for buffer in buffers])]
        ways += both_ways(backend, search.one_step, buffers, Target(time_us=limit_us), fault)
        return timed(job, buffers, ways, logits.numel() * logits.element_size(), options)

    return Job("beam_step", spec.label, "normal1", spec.rows, vocab_size, torch.bfloat16, backend), rows_of


def table_work(device: torch.device, options: Options) -> Iterator[Work]:
    def samples(targets: Targets) -> Iterator[Work]:
        for (backend, settings, dtype), limits in targets.items():
            for rows, limit in zip(BATCHES, limits, strict=True):
                yield sample_work(settings, dtype, rows, VOCAB, backend, limit, device, options)

    yield from samples(US)
    for backend, limit in BEAMS_US.items():
        yield beam_work(64, 1, BEAM_VOCAB, backend, limit, device, options)
    yield from samples(LATER_US)
    for backend in BEAMS_US:
        yield beam_work(4, 8, BEAM_VOCAB, backend, None, device, options)


def quick_work(device: torch.device, options: Options) -> Iterator[Work]:
    for backend in backends_on(device):
        for settings in (dataclasses.replace(FIRST, history=64), NUCLEUS, GREEDY):
            yield sample_work(settings, torch.bfloat16, 2, 1000, backend, None, device, options)
        yield beam_work(4, 2, 1000, backend, None, device, options)


def measured(work: Work, options: Options, device: torch.device) -> list[Row]:
    """Returns the rows of one case; a case that fails has one row, which says why."""
    job, rows_of = work
    row = job.row(options.suite, device, f"pygen {job.backend}", job.backend)
    try:
        return rows_of(job)
    except (BackendError, ImportError, torch.cuda.OutOfMemoryError) as error:
        row.note = f"not run: {str(error).splitlines()[0]}"
    except Exception as error:
        traceback.print_exc(file=sys.stdout)
        row.check = f"{type(error).__name__}: {error}".splitlines()[0]
    return [row]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = cli.parser("Times the steps on a GPU against transformers and FlashInfer.", ("quick", "table"))
    parser.set_defaults(device=torch.device("cuda"))
    parser.add_argument("--seconds", type=float, default=float("inf"), help="start no new case after this time")
    args: Any = parser.parse_args(arguments)
    if args.device.type == "cuda" and not torch.cuda.is_available():
        print("not run: torch finds no CUDA device")
        return 0
    deadline = time.monotonic() + args.seconds
    # The repository keeps the results of whole tables. A quick run is saved only into another folder.
    save = not args.no_save and (args.size == "table" or args.results != RESULTS)
    path = args.results / f"{device_slug(args.device)}.csv"
    with cli.threads(args.threads):
        options = cli.options(args, "gpu", {"quick": 0.3, "table": 4.0}[args.size])
        works = list({"quick": quick_work, "table": table_work}[args.size](args.device, options))
        rows: list[Row] = []
        for work in tqdm(works, desc=options.suite, disable=not options.progress):
            if time.monotonic() > deadline:
                job = work[0]
                late = job.row(options.suite, args.device, f"pygen {job.backend}", job.backend)
                rows.append(dataclasses.replace(late, note=NO_TIME))
                continue
            found = measured(work, options, args.device)
            if save:
                save_new(path, found, machine_block(args.device))
            for row in found:
                if row.backend == work[0].backend:
                    tqdm.write(line_of(row))
            sys.stdout.flush()
            rows += found
        return cli.finish(rows, args, save=False)


if __name__ == "__main__":
    sys.exit(main())
