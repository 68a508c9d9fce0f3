"""Runs the three hot calls once under Nsight Compute, and makes a short table of what it found.

python -m benchmarks.gpu_profile run                 what `ncu` runs; with --device cpu a rehearsal without a GPU
python -m benchmarks.gpu_profile table ncu.csv       time, memory throughput, issue slots and stalls of every kernel

gpu_suite.sh has the command of ncu: it profiles only between the profiler's start and stop, so whatever kernels an op
launches are in the file, under any name. A kernel that only waits begins each call.
"""

from __future__ import annotations

import argparse
import csv
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from benchmarks.gpu_flushed import hot_works

SEPARATOR = "spin_kernel"
US = {"ns": 1e-3, "nsecond": 1e-3, "us": 1.0, "usecond": 1.0, "ms": 1e3, "msecond": 1e3}
# Heading of the table, and the metrics that may have it: the first that the file has.
COLUMNS: dict[str, tuple[str, ...]] = {
    "us": (r"gpu__time_duration\.sum",),
    "memory %": (r"gpu__compute_memory_throughput\.avg\.pct_of_peak_sustained_elapsed",),
    "DRAM %": (
        r"gpu__dram_throughput\.avg\.pct_of_peak_sustained_elapsed",
        r"dram__throughput\.avg\.pct_of_peak_sustained_elapsed",
    ),
    "no warp to issue %": (r"smsp__issue_inst0\.avg\.pct_of_peak_sustained_active",),
    "issued per cycle": (r"smsp__issue_active\.avg\.per_cycle_active", r"smsp__inst_issued\.avg\.per_cycle_active"),
    "occupancy %": (r"sm__warps_active\.avg\.pct_of_peak_sustained_active",),
    "registers": (r"launch__registers_per_thread",),
}
STALL = re.compile(r"smsp__average_warps?_(?:latency_)?issue_stalled_(\w+?)_per_issue_active\.ratio")
MOST_STALLS = 3


def run(device: torch.device) -> None:
    small = device.type != "cuda"
    for job, make in hot_works(device, small):
        call = make()
        for _ in range(3):
            call()
        if not small:
            torch.cuda.synchronize()
            torch.cuda.profiler.start()  # type: ignore[no-untyped-call]
            torch.cuda._sleep(100)  # type: ignore[no-untyped-call]
        call()
        if not small:
            torch.cuda.synchronize()
            torch.cuda.profiler.stop()  # type: ignore[no-untyped-call]
        print(f"ran {job}", flush=True)


def kernels(path: Path) -> Iterator[tuple[dict[str, str], dict[str, str]]]:
    """Yields the metrics of every kernel and their units, from the raw page of `ncu --csv`."""
    with path.open(newline="") as file:
        lines = list(file)
    begin = next((index for index, line in enumerate(lines) if line.startswith('"ID"')), len(lines))
    reader = csv.DictReader(lines[begin:])
    units = next(reader, None)
    for line in reader:
        yield {name: value or "" for name, value in line.items() if name}, units or {}


def number(text: str) -> float | None:
    try:
        return float(text.replace(",", ""))
    except ValueError:
        return None


def stalls_of(metrics: dict[str, str]) -> str:
    """Returns the largest reasons, each with the warps that waited for it per issued instruction."""
    found = {match[1]: number(text) for name, text in metrics.items() if (match := STALL.fullmatch(name))}
    ranked = sorted(((value, name) for name, value in found.items() if value), reverse=True)
    return ", ".join(f"{name.replace('_', ' ')} {value:.2g}" for value, name in ranked[:MOST_STALLS])


def cells_of(metrics: dict[str, str], units: dict[str, str]) -> list[str]:
    cells = []
    for heading, patterns in COLUMNS.items():
        name = next((name for pattern in patterns for name in metrics if re.fullmatch(pattern, name)), "")
        value = number(metrics.get(name, ""))
        if value is not None and heading == "us":
            value *= US.get(units.get(name, ""), 1.0)
        cells.append("" if value is None else f"{value:.3g}")
    return [*cells, stalls_of(metrics)]


def table(path: Path, calls: Sequence[str]) -> list[str]:
    """Returns the lines of the table, in Markdown."""
    heads = ("call", "kernel", *COLUMNS, "stalls")
    lines = [f"| {' | '.join(heads)} |", f"|{' --- |' * len(heads)}"]
    index = -1
    for metrics, units in kernels(path):
        name = metrics.get("Kernel Name", "")
        if SEPARATOR in name:
            index += 1
            continue
        call = calls[index] if 0 <= index < len(calls) else "?"
        named = re.sub(r"^void |\(anonymous namespace\)::|<unnamed>::", "", name)
        short = re.sub(r"[(<].*$", "", named)
        lines.append(f"| {' | '.join([call, short, *cells_of(metrics, units)])} |")
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Profiles the hot calls, or makes a table of a profile.")
    parser.add_argument("what", choices=("run", "table"))
    parser.add_argument("file", nargs="?", type=Path)
    parser.add_argument("--device", type=torch.device, default=torch.device("cuda"))
    args = parser.parse_args(arguments)
    if args.what == "run":
        run(args.device)
        return 0
    if args.file is None:
        parser.error("table needs a file")
    lines = table(args.file, [str(job) for job, _ in hot_works(torch.device("cuda"), small=False)])
    print("\n".join(lines))
    return 0 if len(lines) > 2 else 1


if __name__ == "__main__":
    sys.exit(main())
