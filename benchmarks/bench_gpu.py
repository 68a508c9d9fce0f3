"""Times one step from logits to tokens on a GPU: graph replay and eager calls of both GPU backends, against
transformers and, where it can be imported, FlashInfer.

python -m benchmarks.bench_gpu --table     the figures of the README, with their targets
python -m benchmarks.bench_gpu --quick     a look, in seconds; with --device cpu a rehearsal without a GPU

A sweep does the job once on every buffer, so a call reads its logits from memory and not from the cache. The reported
time is that of a sweep divided by the number of buffers. A graph captures the whole sweep.
"""

from __future__ import annotations

import dataclasses
import random
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from tqdm import tqdm

from benchmarks import bench_beam_step, cli
from benchmarks.baseline import Settings, TransformersStep
from benchmarks.bench_sample import SEED, Spec, check_tokens, knobs_of
from benchmarks.harness import BASELINE, FLOOR_BACKEND, Options, Row, Target, Timing, compare, timer_for
from benchmarks.inputs import make_logits, random_ids, rotation
from benchmarks.machine import commit, today
from pygen.backends import BackendError
from pygen.graph.cuda_graph import CudaGraph
from pygen.ops import prepare_sample

VOCAB = 151936
PENALISED = 1024
FIRST = Settings(temperature=0.7, repetition_penalty=1.1, top_k=50, top_p=0.9, history=PENALISED)
NUCLEUS = Settings(top_p=0.9)
FREE = Settings()
# microseconds at 1, 8, 64 and 256 rows
BATCHES = (1, 8, 64, 256)
CUDA_US: dict[tuple[Settings, torch.dtype], tuple[float | None, ...]] = {
    (FIRST, torch.bfloat16): (8, 8, 15, 50),
    (NUCLEUS, torch.bfloat16): (8, 8, 15, 50),
    (FIRST, torch.float32): (10, 12, 30, 100),
    (FREE, torch.bfloat16): (None, None, None, None),
}
TRITON_US = {1: 15.0, 64: 40.0, 256: 120.0}
BEAMS_US = {"cuda": 25.0, "triton": 60.0}
MOST_BUFFERS = 256

Sweep = Callable[[], object]


@dataclasses.dataclass(frozen=True)
class Way:
    """One implementation of a job, run on all buffers."""

    name: str
    backend: str
    sweep: Sweep
    target: Target = dataclasses.field(default_factory=Target)


def captured(sweep: Sweep) -> Sweep:
    """Captures `sweep` as one CUDA graph."""
    return CudaGraph([sweep], lambda: None, CudaGraph.new_pool()).replay


def both_ways(name: str, backend: str, call: Callable[[torch.Tensor], object], buffers: Sequence[torch.Tensor],
              target: Target) -> Iterator[Way]:  # fmt: skip
    """Yields graph replay, which has the target, and eager calls. The CPU has eager calls only."""

    def sweep() -> None:
        for logits in buffers:
            call(logits)

    if buffers[0].is_cuda:
        yield Way(f"{name} graph", backend, captured(sweep), target)
    yield Way(f"{name} eager", backend, sweep)


def flashinfer_call(settings: Settings) -> Callable[[torch.Tensor], object] | None:
    """FlashInfer's kernels for the same filters, its cast and softmax included. Its calls apply no penalty."""
    try:
        from flashinfer import sampling
    except ImportError:
        return None

    def call(logits: torch.Tensor) -> object:
        temperature = torch.full((len(logits),), settings.temperature, device=logits.device)
        probs = sampling.softmax(logits, temperature)
        if settings.top_k and settings.top_p < 1:
            return sampling.top_k_top_p_sampling_from_probs(probs, settings.top_k, settings.top_p)
        if settings.top_p < 1:
            return sampling.top_p_sampling_from_probs(probs, settings.top_p)
        return sampling.sampling_from_probs(probs)

    return call


def gpu_backends(device: torch.device) -> list[str]:
    """Returns the GPU backends that run here. A rehearsal on the CPU uses the CPU's backend instead."""
    if device.type != "cuda":
        return ["cpu"]
    found = []
    for name in ("cuda", "triton"):
        try:
            prepare_sample(torch.zeros(1, 8, device=device), seed=SEED, backend=name)
            found.append(name)
        except BackendError as error:
            print(f"not run: {error}")
    return found


def sample_rows(spec: Spec, index: int, device: torch.device, options: Options) -> list[Row]:
    """Times `sample` at one shape. `index` selects the batch size in the tables of targets."""
    logits = make_logits(spec.distribution, spec.rows, spec.vocab_size, spec.dtype).to(device)
    input_ids = random_ids(spec.rows, spec.settings.history, spec.vocab_size).to(device)
    buffers = rotation(logits, "cold")[:MOST_BUFFERS]
    step = TransformersStep(spec.settings, input_ids)
    ways = [Way(BASELINE, "torch", lambda: [step.tokens(buffer) for buffer in buffers])]
    faults = {}
    for backend in gpu_backends(device):
        knobs = knobs_of(spec.settings, "philox", input_ids, backend)
        steps = torch.zeros(spec.rows, dtype=torch.int64, device=device)
        prepared = prepare_sample(logits, step=steps, **knobs)
        limit = CUDA_US.get((spec.settings, spec.dtype), (None,) * len(BATCHES))[index]
        if backend == "triton":
            limit = TRITON_US.get(spec.rows) if (spec.settings, spec.dtype) == (FIRST, torch.bfloat16) else None
        wanted = {"cuda": 50.0, "triton": 30.0}.get(backend) if spec.rows == 64 and limit is not None else None
        ratio = 2.0 if backend == "cuda" and limit is not None else None
        target = Target(time_us=limit, speedup=wanted, flashinfer_speedup=ratio)
        ways += both_ways(f"pygen {backend}", backend, prepared, buffers, target)
        fault = check_tokens(spec, logits, input_ids, "philox", backend)
        faults.update({way.name: fault for way in ways if fault and way.backend == backend})
    theirs = flashinfer_call(spec.settings)
    if theirs is not None and device.type == "cuda":
        ways += both_ways("flashinfer", "flashinfer", theirs, buffers, Target())
    moved = logits.numel() * logits.element_size() + 12 * spec.rows
    return timed("sample", spec.settings.label, spec.distribution, buffers, ways, moved, faults, options)


def beam_rows(num_beams: int, batch_size: int, vocab_size: int, device: torch.device, options: Options) -> list[Row]:
    """Times `beam_step`, repeating one step."""
    spec = bench_beam_step.Spec(bench_beam_step.SEARCH, batch_size, num_beams, vocab_size)
    logits = make_logits("normal1", spec.rows, vocab_size, torch.bfloat16).to(device)
    buffers = rotation(logits, "cold")[:MOST_BUFFERS]
    searches = {name: bench_beam_step.RunningSearch(spec, logits, name) for name in gpu_backends(device)}
    if not searches:
        return []
    theirs = bench_beam_step.TransformersBeams(spec, next(iter(searches.values())).state)
    ways = [Way(BASELINE, "torch", lambda: [theirs.candidates(buffer) for buffer in buffers])]
    faults: dict[str, str] = {}
    for backend, search in searches.items():
        fault = bench_beam_step.check_step(spec, search, theirs, logits)
        limit = BEAMS_US.get(backend) if (num_beams, batch_size) == (64, 1) else None
        ways += both_ways(f"pygen {backend}", backend, search.one_step, buffers, Target(time_us=limit))
        faults.update({way.name: fault for way in ways if fault and way.backend == backend})
    moved = logits.numel() * logits.element_size()
    return timed("beam_step", spec.label, "normal1", buffers, ways, moved, faults, options)


def timed(
    op: str, settings: str, distribution: str, buffers: Sequence[torch.Tensor], ways: Sequence[Way], moved: int,
    faults: Mapping[str, str], options: Options,
) -> list[Row]:  # fmt: skip
    """Times all ways in random order. Rows have ratios to transformers, to FlashInfer and to a copy."""
    first = buffers[0]
    spare = [buffer.clone() for buffer in buffers]

    def copy() -> None:
        for target, buffer in zip(spare, buffers, strict=True):
            target.copy_(buffer)

    size = first.numel() * first.element_size()
    floor = Way("copy", FLOOR_BACKEND, captured(copy) if first.is_cuda else copy)
    everything = [floor, *ways]
    timings = sweep_times(everything, len(buffers), first.device, options, f"{op} {settings}")
    rows = []
    for way in everything:
        timing = timings[way.name]
        is_floor = way is floor
        row = Row(
            options.suite, op, settings, distribution, first.shape[0], first.shape[1],
            str(first.dtype).removeprefix("torch."), way.name, way.backend, timing.median_us,
            100 * timing.spread_us / timing.median_us, timing.calls, 2 * size if is_floor else moved,
            check="" if is_floor or way.name == BASELINE else faults.get(way.name, "ok"),
            cache="cold", threads=torch.get_num_threads(), device=str(first.device), commit=commit(), date=today(),
        )  # fmt: skip
        row.gb_per_s = (row.bytes_moved or 0) / timing.median_us / 1e3
        rows.append(row)
    baseline = timings[BASELINE].median_us
    roof = 2 * size / timings["copy"].median_us
    for row, way in zip(rows[1:], ways, strict=True):
        theirs = timings.get(f"flashinfer {way.name.rpartition(' ')[2]}")
        if theirs is not None and way.backend != "flashinfer" and not row.red:
            row.flashinfer_speedup = theirs.median_us / timings[way.name].median_us
        compare(row, way.target, roof, None, baseline)
    return rows


def sweep_times(
    ways: Sequence[Way], calls: int, device: torch.device, options: Options, label: str
) -> dict[str, Timing]:
    """Returns microseconds per call of every way. Each round runs all of them once, in random order."""
    timer = timer_for(device)
    first = {way.name: [timer(lambda _, way=way: way.sweep(), 0, 1) for _ in range(3)][-1] for way in ways}  # type: ignore[misc]
    rounds = max(options.min_rounds, min(options.max_rounds, int(options.budget_s * 1e6 / sum(first.values()))))
    samples: dict[str, list[float]] = {way.name: [] for way in ways}
    shuffler, order = random.Random(options.seed), list(ways)
    for _ in tqdm(range(rounds), desc=label, leave=False, disable=not options.progress):
        shuffler.shuffle(order)
        for way in order:
            samples[way.name].append(timer(lambda _, way=way: way.sweep(), 0, 1) / calls)  # type: ignore[misc]
    result = {}
    for name, values in samples.items():
        low, middle, high = statistics.quantiles(values, n=4)
        result[name] = Timing(middle, high - low, len(values) * calls)
    return result


def table_jobs(device: torch.device, options: Options) -> Iterator[Callable[[], list[Row]]]:
    for settings, dtype in CUDA_US:
        for index, rows in enumerate(BATCHES):
            spec = Spec(settings, rows, VOCAB, dtype, "normal5" if settings is NUCLEUS else "normal1")
            yield lambda spec=spec, index=index: sample_rows(spec, index, device, options)  # type: ignore[misc]
    for num_beams, batch_size in ((64, 1), (4, 8)):
        yield lambda n=num_beams, b=batch_size: beam_rows(n, b, 128256, device, options)  # type: ignore[misc]


def quick_jobs(device: torch.device, options: Options) -> Iterator[Callable[[], list[Row]]]:
    spec = Spec(dataclasses.replace(FIRST, history=64), 2, 4096, torch.bfloat16)
    yield lambda: sample_rows(spec, 0, device, options)
    yield lambda: beam_rows(4, 2, 4096, device, options)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = cli.parser("Times the steps on a GPU against transformers and FlashInfer.", ("quick", "table"))
    parser.set_defaults(device=torch.device("cuda"))
    args: Any = parser.parse_args(arguments)
    if args.device.type == "cuda" and not torch.cuda.is_available():
        print("not run: torch finds no CUDA device")
        return 0
    with cli.threads(args.threads):
        options = cli.options(args, "gpu", {"quick": 0.3, "table": 4.0}[args.size])
        jobs = list({"quick": quick_jobs, "table": table_jobs}[args.size](args.device, options))
        rows: list[Row] = []
        for job in tqdm(jobs, desc=options.suite, disable=not options.progress):
            rows += job()
        return cli.finish(rows, args, save=args.size == "table")


if __name__ == "__main__":
    sys.exit(main())
