"""Rehearses `gpu_suite.sh` on a machine without a GPU, in the environment of one with; `make gpu-rehearsal` runs it.

python -m benchmarks.gpu_rehearsal OUT [--only environment,suite] [--list]

Its parts go as far as a CPU can: the launchers of the ops up to the driver, every compiled form, each part of the suite
on small cases. Logs go to OUT. No part has a network where the system allows to take it away. The table at the end
says what ran; a failed part makes the exit status 1.
"""

from __future__ import annotations

import argparse
import csv
import importlib.metadata
import json
import os
import pkgutil
import re
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.prebuilt import ROOT, misfit

# Tests whose outcome depends on the releases of torch, transformers and Triton.
TESTS = ("tests/ops", "tests/runtime", "tests/generate/test_devices.py", "tests/test_parity.py")


class Failed(Exception):
    """Ends a part with its reason."""


class Rehearsal(NamedTuple):
    out: Path
    prefix: tuple[str, ...]

    def run(self, name: str, *command: str, **environment: str) -> str:
        """Runs a command with its output in a log; returns the last line of it, and raises Failed with that."""
        log = self.out / f"{name}.log"
        with open(log, "w") as file:
            done = subprocess.run(
                [*self.prefix, *command], cwd=ROOT, stdout=file, stderr=subprocess.STDOUT,
                env={**os.environ, **OFFLINE, **environment},
            )  # fmt: skip
        lines = [line for line in log.read_text().splitlines() if line.strip()]
        last = lines[-1].strip("= ") if lines else "no output"
        if done.returncode:
            raise Failed(f"status {done.returncode}: {last}")
        return last

    def python(self, name: str, *arguments: str, **environment: str) -> str:
        return self.run(name, sys.executable, *arguments, **environment)

    def pytest(self, name: str, *arguments: str, **environment: str) -> str:
        # A small machine that does other work, too, takes longer, and a rehearsal has time.
        options = (
            "-q",
            "-p",
            "no:cacheprovider",
            "-o",
            "addopts=",
            "-o",
            "timeout=7200",
            "-n",
            "2",
            "--dist",
            "worksteal",
        )
        return self.python(name, "-m", "pytest", *options, *arguments, OMP_NUM_THREADS="1", **environment)


# Without a network the loopback interface is down, which torch.distributed uses even on one machine. 0x8914 is
# SIOCSIFFLAGS, whose flag 1 raises an interface.
LOOPBACK = (
    "import fcntl, os, socket, struct, sys; "
    "fcntl.ioctl(socket.socket(), 0x8914, struct.pack('16sh22x', b'lo', 1)); "
    "os.execvp(sys.argv[1], sys.argv[1:])"
)
OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "PYTHONUNBUFFERED": "1",
    "PYTHONPATH": str(ROOT),
}


def environment(rehearsal: Rehearsal) -> str:
    """The pinned releases, torch with CUDA and without a GPU, and every module imports."""
    pins = dict(re.findall(r"^([^#\s=]+)==(\S+)$", (ROOT / "constraints-gpu.txt").read_text(), re.MULTILINE))
    found = {name: importlib.metadata.version(name) for name in pins}
    wrong = [f"{name} {found[name]} instead of {pin}" for name, pin in pins.items() if found[name] != pin]
    if sys.version_info[:2] != (3, 12):
        wrong.append(f"Python {sys.version.split()[0]} instead of 3.12")
    if wrong:
        raise Failed("; ".join(wrong))
    rehearsal.python("torch", "-c", "import torch; assert torch.version.cuda and not torch.cuda.is_available()")
    modules = [
        info.name
        for folder in ("pygen", "benchmarks")
        for info in pkgutil.walk_packages([str(ROOT / folder)], f"{folder}.")
        if not info.name.rpartition(".")[2].startswith("_C")
    ]
    code = f"import importlib\nfor name in {modules}: importlib.import_module(name)\n"
    rehearsal.python("imports", "-c", code)
    named = ", ".join(f"{name} {found[name]}" for name in ("torch", "triton", "transformers"))
    return f"Python {sys.version.split()[0]}, {named}; {len(modules)} modules import"


def prebuilt(rehearsal: Rehearsal) -> str:
    """The extension of `make gpu-prebuilt` fits these sources and this Python, and is used; nvcc compiled it."""
    reason = misfit(None)
    if reason:
        raise Failed(f"make gpu-prebuilt first: {reason}")
    return rehearsal.python("prebuilt", "-m", "benchmarks.prebuilt", "install")


def forms(rehearsal: Rehearsal) -> str:
    """Triton's runtime compiles every form of its kernels for compute capability 9.0, and they are packed."""
    return rehearsal.python("forms", "-m", "tests.helpers.triton_cache")


def launchers(rehearsal: Rehearsal) -> str:
    """Every op on stand-in CUDA tensors up to the driver, with both GPU backends; launches find all forms unpacked."""
    cache = rehearsal.out / "triton"
    shutil.rmtree(cache, ignore_errors=True)
    rehearsal.python("unpacked", "-m", "benchmarks.triton_forms", str(cache))
    before = {path.parent.name for path in cache.glob("*/*.cubin")}
    last = rehearsal.pytest("launchers", "-n0", "tests/gpu_rehearsal", TRITON_CACHE_DIR=str(cache))
    others = sorted(path.name for path in cache.glob("*/*.cubin") if path.parent.name not in before)
    if others:
        raise Failed(f"{len(others)} launches compiled again: {', '.join(sorted({*others}))}")
    return f"{last}; {len(before)} forms found"


def suite(rehearsal: Rehearsal) -> str:
    """Each part of `gpu_suite.sh` on small cases."""
    folder = rehearsal.out / "suite"
    shutil.rmtree(folder, ignore_errors=True)
    try:
        rehearsal.run("suite", "bash", "benchmarks/gpu_suite.sh", str(folder), "--device", "cpu", PYTHON=sys.executable)
    finally:
        print(_suite_lines(folder))
    listed = subprocess.run(["bash", "benchmarks/gpu_suite.sh", "--list"], cwd=ROOT, capture_output=True, text=True)
    parts = [line.split("\t")[0] for line in listed.stdout.splitlines()]
    ran = _suite_lines(folder)
    missing = [part for part in parts if not re.search(rf"^{re.escape(part)} +(ok|not run)", ran, re.MULTILINE)]
    if missing:
        raise Failed(f"no result of {', '.join(missing)}")
    skipped = re.findall(r"^(\S+) +not run", ran, re.MULTILINE)
    return f"{len(parts) - len(skipped)} parts ok" + (f"; not run: {', '.join(skipped)}" if skipped else "")


def _suite_lines(folder: Path) -> str:
    summary = folder / "summary.txt"
    return summary.read_text().split("\n\n")[0] if summary.exists() else "the suite left no summary"


def results(rehearsal: Rehearsal) -> str:
    """What the suite saved: rows with their checks, the same as JSON, and the logs of its parts."""
    folder = rehearsal.out / "suite"
    rows = 0
    for path in sorted(folder.glob("*.csv")):
        with open(path) as file:
            found = list(csv.DictReader(file))
        saved = json.loads(path.with_suffix(".json").read_text())
        if not found or not saved:
            raise Failed(f"{path.name} has {len(found)} rows, and its JSON {len(saved)} entries")
        rows += len(found)
    if not rows:
        raise Failed("the suite saved no row")
    with tarfile.open(folder / "logs.tar.gz") as archive:
        logs = [name for name in archive.getnames() if name.endswith(".log")]
    if not logs:
        raise Failed("logs.tar.gz has no logs")
    return f"{rows} rows, {len(logs)} logs"


def copies(rehearsal: Rehearsal) -> str:
    """The tests of the ops over copies of their tensors, the way they reach a GPU."""
    return rehearsal.pytest("copies", "tests/ops", PYGEN_TEST_BACKENDS="cpu_copies")


def tests(rehearsal: Rehearsal) -> str:
    """The tests of the ops and of whole calls, with the releases of this environment."""
    return rehearsal.pytest("tests", *TESTS)


PARTS: tuple[Callable[[Rehearsal], str], ...] = (
    environment, prebuilt, forms, launchers, suite, results, copies, tests,
)  # fmt: skip


def without_network() -> tuple[str, ...]:
    """Returns what a command starts with to reach only its own machine, or nothing where the system forbids it."""
    prefix = ("unshare", "--map-root-user", "--net", sys.executable, "-c", LOOPBACK)
    if shutil.which(prefix[0]) and subprocess.run([*prefix, "true"], capture_output=True).returncode == 0:
        return prefix
    return ()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Rehearses gpu_suite.sh on a machine without a GPU.")
    parser.add_argument("out", nargs="?", type=Path, default=ROOT / "build" / "gpu-rehearsal")
    parser.add_argument("--only", default="", help="parts, separated by commas")
    parser.add_argument("--list", action="store_true", help="print the parts")
    args = parser.parse_args(arguments)
    if args.list:
        print("\n".join(f"{part.__name__:12} {part.__doc__}" for part in PARTS))
        return 0
    chosen = args.only.split(",") if args.only else [part.__name__ for part in PARTS]
    unknown = {*chosen} - {part.__name__ for part in PARTS}
    if unknown:
        parser.error(f"--only takes names of --list, got {', '.join(sorted(unknown))}")
    out = args.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    rehearsal = Rehearsal(out, without_network())
    print(f"no network: {'cut off' if rehearsal.prefix else 'only by the variables of the hub'}", flush=True)
    table: list[tuple[str, str, str, float]] = []
    for part in PARTS:
        if part.__name__ not in chosen:
            continue
        began = time.monotonic()
        try:
            result, text = "ok", part(rehearsal)
        except Exception as error:
            result, text = "FAILED", str(error) if isinstance(error, Failed) else f"{type(error).__name__}: {error}"
        table.append((part.__name__, result, text, time.monotonic() - began))
        print(f"== {part.__name__}: {result}: {text}", flush=True)
    rows = [f"{'part':12} {'result':7} {'seconds':>7}  what"]
    rows += [f"{name:12} {result:7} {seconds:7.0f}  {text}" for name, result, text, seconds in table]
    (out / "summary.txt").write_text("\n".join(rows) + "\n")
    print("\n" + "\n".join(rows))
    return int(any(result == "FAILED" for _, result, _, _ in table))


if __name__ == "__main__":
    sys.exit(main())
