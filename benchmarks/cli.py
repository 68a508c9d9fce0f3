"""Shared by every bench: command-line arguments, progress bars, and output of the rows."""

from __future__ import annotations

import argparse
import contextlib
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from benchmarks.harness import Case, Options, Row, run_case
from benchmarks.machine import device_slug, load_before, machine_block
from benchmarks.plots import plot_results
from benchmarks.report import RESULTS, print_rows, print_summary, save_csv


def parser(description: str, sizes: Sequence[str]) -> argparse.ArgumentParser:
    """Returns the parser of a bench. `sizes` names its sets of cases, as exclusive flags; `table` is the default."""
    made = argparse.ArgumentParser(description=description)
    group = made.add_mutually_exclusive_group()
    for size in sizes:
        group.add_argument(f"--{size}", dest="size", action="store_const", const=size, help=f"run the {size} cases")
    made.set_defaults(size="table")
    made.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    made.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    made.add_argument("--backend", default="auto", help="pygen's backend")
    made.add_argument("--cache", choices=("cold", "warm"), default="cold", help="where a call finds its logits")
    made.add_argument("--budget", type=float, default=None, metavar="S", help="seconds to measure one case")
    made.add_argument("--results", type=Path, default=RESULTS, help="folder of the CSV and the plot")
    made.add_argument("--no-save", action="store_true", help="print only")
    made.add_argument("--quiet", action="store_true", help="no progress bars")
    return made


def options(args: argparse.Namespace, bench: str, budget_s: float, min_rounds: int = 5) -> Options:
    """Returns the measuring options. Rows are saved under a suite, which names the bench, its size and the cache."""
    load_before()
    suite = f"{bench}-{args.size}" + ("-warm" if args.cache == "warm" else "")
    return Options(suite, args.cache, args.budget or budget_s, min_rounds, progress=not args.quiet)


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def run_cases(cases: Iterable[Case], count: int, chosen: Options) -> list[Row]:
    """Runs cases one by one as the iterable yields them, so that only one case's buffers exist at a time."""
    rows: list[Row] = []
    with tqdm(total=count, desc=chosen.suite, disable=not chosen.progress) as bar:
        for case in cases:
            bar.set_postfix_str(f"{case.settings} {tuple(case.buffers[0].shape)}")
            rows += run_case(case, chosen)
            del case
            bar.update()
    return rows


def finish(rows: list[Row], args: argparse.Namespace, save: bool) -> int:
    """Prints the machine, the table and the summary; saves CSV and plot; returns the exit status, 1 on any red."""
    machine = machine_block(args.device)
    for key, value in machine.items():
        print(f"{key}: {value}")
    print_rows(rows)
    print_summary(rows)
    if save and not args.no_save:
        path = args.results / f"{device_slug(args.device)}.csv"
        everything = save_csv(path, rows, machine)
        print(f"wrote {path}")
        plot = plot_results(everything, machine, path.with_suffix(".png"))
        print(f"wrote {plot}" if plot else "no plot: matplotlib is not installed")
    return 1 if any(row.red for row in rows) else 0
