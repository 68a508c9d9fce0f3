"""Measures the ops on this machine, each beside the same step written in plain
torch, and checks first that both give the same result.

Times are medians of calls in turn. The tables of the documentation, against
transformers, come from `make bench` in a checkout.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence

import torch

from pygen.cli.bench_cases import Case, cases
from pygen.cli.model import chosen_device
from pygen.cli.parser import FAILED, UsageError

_ROUNDS = 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rows", default="1,8,64", metavar="N,N", help="numbers of rows (default: 1,8,64)")
    parser.add_argument("--vocab-size", type=int, default=128_256, metavar="V", help="default: 128256")
    parser.add_argument("--dtype", default="float32", choices=["float32", "float16", "bfloat16"], help="of the logits")
    parser.add_argument("--device", metavar="DEVICE", help="cpu, cuda, ... (default: cuda where there is one)")
    parser.add_argument("--seconds", type=float, default=1.0, metavar="S", help="time for one line (default: 1)")


def run(arguments: argparse.Namespace) -> int:
    device, rows = chosen_device(arguments.device), _rows(arguments.rows)
    if arguments.vocab_size < 64:
        raise UsageError(f"argument --vocab-size: must be at least 64, got {arguments.vocab_size}")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    print(f"{device} ({name}), torch {torch.__version__}, vocabulary {arguments.vocab_size}, {arguments.dtype}")
    print(f"{'op':<16}{'step':<34}{'rows':>5}{'torch ms':>11}{'pygen ms':>11}{'ratio':>8}  backend")
    failed = 0
    for count in rows:
        for case in cases(count, arguments.vocab_size, getattr(torch, arguments.dtype), device):
            problem = case.problem()
            failed += problem is not None
            print(_line(case, count, problem, *measured(case, device, arguments.seconds)), flush=True)
    return FAILED if failed else 0


def _line(case: Case, rows: int, problem: str | None, theirs: float, ours: float) -> str:
    words = f"{theirs / ours:>7.1f}x  {case.backend}" if problem is None else f"  WRONG: {problem}"
    return f"{case.op:<16}{case.step:<34}{rows:>5}{theirs * 1000:>11.3f}{ours * 1000:>11.3f}{words}"


def measured(case: Case, device: torch.device, seconds: float) -> tuple[float, float]:
    """Median seconds of the step in plain torch and in pygen; the two take turns for `seconds`, five times at least."""
    calls: Sequence[Callable[[], object]] = (case.plain, case.ours)
    times: tuple[list[float], list[float]] = ([], [])
    for call in calls:
        call()  # first touches of memory, plans and compilation
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times[0]) < _ROUNDS:
        for call, taken in zip(calls, times, strict=True):
            _wait(device)
            start = time.perf_counter()
            call()
            _wait(device)
            taken.append(time.perf_counter() - start)
    return statistics.median(times[0]), statistics.median(times[1])


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _rows(text: str) -> list[int]:
    try:
        rows = [int(word) for word in text.split(",")]
    except ValueError:
        rows = []
    if not rows or min(rows) < 1:
        raise UsageError(f"argument --rows: must be numbers of rows as in 1,8,64, got {text!r}")
    return rows
