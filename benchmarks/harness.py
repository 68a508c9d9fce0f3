"""Times variants of one job side by side and turns the times into self-explanatory rows.

    check -> warm-up -> rounds of (every variant once, in random order) -> medians -> ratios

The same rounds time a copy (the roof) and one read of the input, on the same buffers as the variants. A variant whose
check fails keeps its time but gets no ratio, and the process exits with a non-zero status.
"""

from __future__ import annotations

import dataclasses
import math
import random
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol

import torch
from tqdm import tqdm

from benchmarks.machine import commit, today

Call = Callable[[int], object]
BASELINE = "transformers"
FLOOR_BACKEND = "floor"
MIN_SAMPLE_US = 20.0
VISIT_US = 3000.0


@dataclasses.dataclass(frozen=True)
class Target:
    """The target of a row: at least `speedup` over transformers, at most `reads` of the input and `time_us`.

    flashinfer_speedup: over FlashInfer, on a GPU. outside_speedup: of the time outside the forward. cache_share: bytes
    moved between the rows of the cache, relative to transformers.

    For whole calls on a GPU: copy_percent, of the bandwidth of a copy; static_speedup, over compiled transformers with
    a static cache; launches and syncs beyond the model's forward, per token; capture_s; unreleased_bytes.
    """

    speedup: float | None = None
    reads: float | None = None
    time_us: float | None = None
    flashinfer_speedup: float | None = None
    outside_percent: float | None = None
    outside_speedup: float | None = None
    cache_share: float | None = None
    memory_bytes: int | None = None
    copy_percent: float | None = None
    static_speedup: float | None = None
    launches_beyond_forward: float | None = None
    syncs_beyond_forward: float | None = None
    capture_s: float | None = None
    unreleased_bytes: int | None = None


@dataclasses.dataclass(frozen=True)
class Variant:
    """One implementation of the job. `call(i)` runs it on input buffer `i` (any int; the callee takes it modulo)."""

    name: str
    backend: str
    call: Call
    target: Target = Target()


@dataclasses.dataclass
class Case:
    """One job: a shape, a distribution and settings, with the variants that do it.

    The variants rotate through the inputs `buffers`; the floors read and copy them. `bytes_moved` is the minimum that
    any variant must move. `check()` returns {variant name: error} for the variants that give a wrong answer.
    """

    op: str
    settings: str
    distribution: str
    buffers: Sequence[torch.Tensor]
    bytes_moved: int
    variants: Sequence[Variant]
    check: Callable[[], Mapping[str, str]]
    floors: bool = True


@dataclasses.dataclass
class Row:
    """One line of the results. A ratio is None if the row is red or has nothing to compare with.

    met: "yes", or "no: " and the distance from the target; empty without a target. note: why figures are missing, or
    what else a reader needs to know.
    """

    suite: str
    op: str
    settings: str
    distribution: str
    rows: int
    vocab_size: int
    dtype: str
    variant: str
    backend: str
    median_us: float | None = None
    spread_percent: float | None = None
    calls: int = 0
    bytes_moved: int | None = None
    gb_per_s: float | None = None
    percent_of_copy: float | None = None
    times_read: float | None = None
    speedup: float | None = None
    flashinfer_speedup: float | None = None
    tokens_per_s: float | None = None
    forward_us: float | None = None
    outside_us: float | None = None
    outside_percent: float | None = None
    outside_speedup: float | None = None
    cache_share: float | None = None
    memory_bytes: int | None = None
    launches_per_token: float | None = None
    syncs_per_token: float | None = None
    launches_beyond_forward: float | None = None
    syncs_beyond_forward: float | None = None
    first_token_us: float | None = None
    static_speedup: float | None = None
    agreeing_percent: float | None = None
    capture_s: float | None = None
    unreleased_bytes: int | None = None
    check: str = ""
    target: str = ""
    met: str = ""
    note: str = ""
    cache: str = ""
    threads: int = 0
    device: str = ""
    commit: str = ""
    date: str = ""

    @property
    def red(self) -> bool:
        return self.check not in ("", "ok")

    @property
    def is_floor(self) -> bool:
        return self.backend == FLOOR_BACKEND


@dataclasses.dataclass(frozen=True)
class Options:
    """How long to measure. `budget_s` is the time of one case; every variant runs in at least `min_rounds` rounds."""

    suite: str
    cache: str = "cold"
    budget_s: float = 6.0
    min_rounds: int = 5
    max_rounds: int = 60
    seed: int = 0
    progress: bool = True


@dataclasses.dataclass(frozen=True)
class Timing:
    """Microseconds of one call: the median and the interquartile range."""

    median_us: float
    spread_us: float
    calls: int


class Timer(Protocol):
    """Runs `call(first) ... call(first + calls - 1)` and returns the microseconds of one call."""

    def __call__(self, call: Call, first: int, calls: int) -> float: ...


def cpu_timer(call: Call, first: int, calls: int) -> float:
    start = time.perf_counter_ns()
    for i in range(first, first + calls):
        call(i)
    return (time.perf_counter_ns() - start) / 1e3 / calls


def cuda_timer(call: Call, first: int, calls: int) -> float:
    """Times between two events on the current stream. It measures the device, not the return of the launches."""
    start = torch.cuda.Event(enable_timing=True)
    end = torch.cuda.Event(enable_timing=True)
    start.record()
    for i in range(first, first + calls):
        call(i)
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) * 1e3 / calls


def timer_for(device: torch.device) -> Timer:
    return cuda_timer if device.type == "cuda" else cpu_timer


def measure(calls: Mapping[str, Call], timer: Timer, options: Options, label: str = "") -> dict[str, Timing]:
    """Returns medians of interleaved variants.

    Every round visits the variants in random order and takes a few samples of each. A sample has enough calls to be
    longer than the clock's step. The call index grows over all variants, so that no variant finds a buffer that the
    one before it has just read. The number of rounds fills `budget_s`, within `min_rounds` and `max_rounds`.
    """
    index = 0

    def sample(name: str, count: int) -> float:
        nonlocal index
        spent = timer(calls[name], index, count)
        index += count
        return spent

    batch: dict[str, int] = {}
    visits: dict[str, int] = {}
    round_us = 0.0
    for name in calls:
        first = sample(name, 1)
        if first < 1e6:
            sample(name, max(1, min(50, int(VISIT_US / max(first, 1e-3)))))
            first = min(sample(name, 1) for _ in range(3))
        batch[name] = max(1, math.ceil(MIN_SAMPLE_US / max(first, 1e-3)))
        sample_us = first * batch[name]
        visits[name] = max(1, min(50, int(VISIT_US / max(sample_us, 1e-3))))
        round_us += sample_us * visits[name]
    wanted = int(options.budget_s * 1e6 / max(round_us, 1e-3))
    rounds = max(options.min_rounds, min(options.max_rounds, wanted))

    generator = random.Random(options.seed)
    samples: dict[str, list[float]] = {name: [] for name in calls}
    order = list(calls)
    for _ in tqdm(range(rounds), desc=label, leave=False, disable=not options.progress):
        generator.shuffle(order)
        for name in order:
            samples[name] += [sample(name, batch[name]) for _ in range(visits[name])]
    return {name: _timing(values, batch[name]) for name, values in samples.items()}


def _timing(values: list[float], batch: int) -> Timing:
    low, middle, high = statistics.quantiles(values, n=4) if len(values) > 1 else (values[0],) * 3
    return Timing(middle, high - low, len(values) * batch)


def floor_calls(buffers: Sequence[torch.Tensor]) -> dict[str, Call]:
    """Returns several ways to read, and to copy, one buffer once; the fastest of each is the floor.

    Half floats are read as float32 bits, because conversion, not memory, limits torch's reductions of half types.
    """
    flat = [buffer.reshape(-1) for buffer in buffers]
    if flat[0].element_size() == 2 and flat[0].numel() % 2 == 0:
        flat = [buffer.view(torch.float32) for buffer in flat]
    table = [buffer.view(buffers[0].shape[0], -1) for buffer in flat]
    # Clones, because the first write to a fresh page costs time in the kernel.
    spare = [buffer.clone() for buffer in flat]
    n = len(flat)
    return {
        "read:sum": lambda i: flat[i % n].sum(),
        "read:sum of rows": lambda i: table[i % n].sum(-1),
        "read:amax": lambda i: flat[i % n].amax(),
        "read:dot": lambda i: torch.dot(flat[i % n], flat[i % n]),
        "copy:copy": lambda i: spare[i % n].copy_(flat[i % n]),
    }


def run_case(case: Case, options: Options) -> list[Row]:
    """Checks, times and compares one case: its floors first, then its variants in their order."""
    first = case.buffers[0]
    faults = case.check()
    calls: dict[str, Call] = {variant.name: variant.call for variant in case.variants}
    floors = floor_calls(case.buffers) if case.floors else {}
    timings = measure({**floors, **calls}, timer_for(first.device), options, case.settings)
    read_us = min((timings[name].median_us for name in floors if name.startswith("read")), default=None)
    copy_us = min((timings[name].median_us for name in floors if name.startswith("copy")), default=None)
    input_bytes = first.numel() * first.element_size()

    def row(name: str, backend: str, timing: Timing, moved: int) -> Row:
        return Row(
            suite=options.suite, op=case.op, settings=case.settings, distribution=case.distribution,
            rows=first.shape[0], vocab_size=first.shape[1], dtype=str(first.dtype).removeprefix("torch."),
            variant=name, backend=backend, median_us=timing.median_us,
            spread_percent=100 * timing.spread_us / timing.median_us, calls=timing.calls,
            bytes_moved=moved, gb_per_s=moved / timing.median_us / 1e3,
            cache=options.cache, threads=torch.get_num_threads(), device=str(first.device),
            commit=commit(), date=today(),
        )  # fmt: skip

    result = []
    for kind, moved in (("read", input_bytes), ("copy", 2 * input_bytes)):
        ways = {name: timings[name] for name in floors if name.startswith(kind)}
        if ways:
            result.append(row(kind, FLOOR_BACKEND, min(ways.values(), key=lambda t: t.median_us), moved))
    roof = 2 * input_bytes / copy_us if copy_us else None
    baseline = timings.get(BASELINE)
    for variant in case.variants:
        line = row(variant.name, variant.backend, timings[variant.name], case.bytes_moved)
        if variant.name != BASELINE:
            line.check = faults.get(variant.name, "ok")
        compare(line, variant.target, roof, read_us, baseline.median_us if baseline else None)
        result.append(line)
    return result


def compare(row: Row, target: Target, roof: float | None, read_us: float | None, baseline_us: float | None) -> None:
    """Fills the ratios of `row` in place, and whether it meets `target`. A red row stays empty."""
    if row.median_us is not None and not row.red:
        if roof is not None and row.bytes_moved is not None:
            row.percent_of_copy = 100 * row.bytes_moved / row.median_us / roof
        if read_us is not None:
            row.times_read = row.median_us / read_us
        if baseline_us is not None and row.variant != BASELINE:
            row.speedup = baseline_us / row.median_us
    judge(row, target)


# For every target: the row's figure, whether the target is its minimum (1) or maximum (-1), and the label.
_LIMITS: dict[str, tuple[str, int, str]] = {
    "speedup": ("speedup", 1, ">={:g}x"),
    "reads": ("times_read", -1, "<={:g} reads"),
    "time_us": ("median_us", -1, "<={:g} us"),
    "flashinfer_speedup": ("flashinfer_speedup", 1, ">={:g}x flashinfer"),
    "outside_percent": ("outside_percent", -1, "<={:g}% outside"),
    "outside_speedup": ("outside_speedup", 1, ">={:g}x outside"),
    "cache_share": ("cache_share", -1, "<={:g} of the cache moves"),
    "memory_bytes": ("memory_bytes", -1, "<={:,} bytes"),
    "static_speedup": ("static_speedup", 1, ">={:g}x static"),
    "copy_percent": ("percent_of_copy", 1, ">={:g}% of a copy"),
    "launches_beyond_forward": ("launches_beyond_forward", -1, "<={:g} more launches"),
    "syncs_beyond_forward": ("syncs_beyond_forward", -1, "<={:g} more syncs"),
    "capture_s": ("capture_s", -1, "<={:g} s to capture"),
    "unreleased_bytes": ("unreleased_bytes", -1, "<={:,} bytes left"),
}


def judge(row: Row, target: Target) -> None:
    """Sets `target` and `met` of `row` in place. A figure that was not measured misses its target."""
    wanted = {name: limit for name in _LIMITS if (limit := getattr(target, name)) is not None}
    row.target = " ".join(_LIMITS[name][2].format(limit) for name, limit in wanted.items())
    misses = []
    for name, limit in wanted.items():
        figure, sign, words = _LIMITS[name]
        value = getattr(row, figure)
        if value is None or sign * (value - limit) < 0:
            found = "not measured" if value is None else f"{value:,.3g}" if value < 1000 else f"{value:,.0f}"
            misses.append(f"{found} for {words.format(limit)}")
    if wanted:
        row.met = "no" if row.red else "no: " + ", ".join(misses) if misses else "yes"


def geometric_mean(values: Iterable[float]) -> float | None:
    logs = [math.log(value) for value in values]
    return math.exp(sum(logs) / len(logs)) if logs else None
