"""The ways to do one job on a GPU, timed side by side: graph replay and eager calls, transformers, FlashInfer, a copy.

A sweep does the job once on every buffer, so a call reads its logits from memory and not from the cache. The reported
time is that of a sweep divided by the number of buffers. A graph captures the whole sweep.
"""

from __future__ import annotations

import dataclasses
import random
import statistics
from collections.abc import Callable, Iterator, Sequence

import torch
from tqdm import tqdm

from benchmarks.baseline import Settings
from benchmarks.harness import BASELINE, FLOOR_BACKEND, Options, Row, Target, Timing, compare, timer_for
from benchmarks.machine import commit, today
from pygen.backends import interprets_triton
from pygen.graph.cuda_graph import CAPTURES, Launches

Sweep = Callable[[], object]


@dataclasses.dataclass(frozen=True)
class Way:
    """One implementation of a job, run on all buffers. `fault` says what is wrong with its result."""

    name: str
    backend: str
    sweep: Sweep
    target: Target = dataclasses.field(default_factory=Target)
    fault: str = ""


@dataclasses.dataclass(frozen=True)
class Job:
    """A row's key: an op at one shape, on one backend."""

    op: str
    settings: str
    distribution: str
    rows: int
    vocab_size: int
    dtype: torch.dtype
    backend: str

    def __str__(self) -> str:
        return f"{self.op} [{self.settings}] {self.rows} x {self.vocab_size} {self.dtype_name} {self.backend}"

    @property
    def dtype_name(self) -> str:
        return str(self.dtype).removeprefix("torch.")

    def row(self, suite: str, device: torch.device, variant: str, backend: str) -> Row:
        """Returns a row without figures. Every job has its own suite, so that a run replaces only what it measures."""
        return Row(
            f"{suite} {self}", self.op, self.settings, self.distribution, self.rows, self.vocab_size, self.dtype_name,
            variant, backend, threads=torch.get_num_threads(), device=str(device), commit=commit(), date=today(),
        )  # fmt: skip


def backends_on(device: torch.device) -> tuple[str, ...]:
    """Returns the GPU's backends. A rehearsal without a GPU uses the CPU's, and Triton's interpreter if it is on."""
    if device.type == "cuda":
        return ("cuda", "triton")
    return ("cpu", "triton") if interprets_triton() else ("cpu",)


def captured(sweep: Sweep, device: torch.device) -> Sweep:
    """Captures `sweep` as one CUDA graph. A rehearsal on the CPU runs it again instead."""
    kind = CAPTURES.get(device.type)
    return Launches([sweep]).replay if kind is None else kind([sweep], lambda: None, kind.new_pool()).replay  # type: ignore[no-any-return]


def captured_copies(copy: Sweep, device: torch.device) -> Sweep:
    """Captures copies. They may be no kernels, and pygen's captures refuse a graph without kernels."""
    if device.type != "cuda":
        return copy
    copy()
    torch.cuda.synchronize(device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        copy()
    return graph.replay


def both_ways(
    backend: str, call: Callable[[torch.Tensor], object], buffers: Sequence[torch.Tensor], target: Target, fault: str
) -> Iterator[Way]:
    """Yields graph replay, which has the target, and eager calls."""

    def sweep() -> None:
        for logits in buffers:
            call(logits)

    owner = backend if backend == "flashinfer" else f"pygen {backend}"
    yield Way(f"{owner} graph", backend, captured(sweep, buffers[0].device), target, fault)
    yield Way(f"{owner} eager", backend, sweep, fault=fault)


def flashinfer_call(settings: Settings) -> Callable[[torch.Tensor], object] | None:
    """FlashInfer's kernels for the same filters, its cast and softmax included. Its calls apply no penalty."""
    if not settings.do_sample:
        return None
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


def timed(job: Job, buffers: Sequence[torch.Tensor], ways: Sequence[Way], moved: int, options: Options) -> list[Row]:
    """Times all ways in random order. Rows have ratios to transformers, to FlashInfer and to a copy."""
    first = buffers[0]
    spare = [buffer.clone() for buffer in buffers]

    def copy() -> None:
        for target, buffer in zip(spare, buffers, strict=True):
            target.copy_(buffer)

    size = first.numel() * first.element_size()
    floor = Way("copy", FLOOR_BACKEND, captured_copies(copy, first.device))
    everything = [floor, *ways]
    timings = sweep_times(everything, len(buffers), first.device, options, str(job))
    roof, rows = 2 * size / timings["copy"].median_us, []
    for way in everything:
        row, timing = job.row(options.suite, first.device, way.name, way.backend), timings[way.name]
        row.median_us, row.calls, row.cache = timing.median_us, timing.calls, "cold"
        row.spread_percent = 100 * timing.spread_us / timing.median_us
        row.bytes_moved = 2 * size if way is floor else moved
        row.gb_per_s = row.bytes_moved / timing.median_us / 1e3
        rows.append(row)
        if way is floor:
            continue
        if way.name != BASELINE:
            row.check = way.fault or "ok"
        theirs = timings.get(f"flashinfer {way.name.rpartition(' ')[2]}")
        if theirs is not None and way.backend != "flashinfer" and not row.red:
            row.flashinfer_speedup = theirs.median_us / timing.median_us
        compare(row, way.target, roof, None, timings[BASELINE].median_us)
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
