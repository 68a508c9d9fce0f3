"""Shows versions, the backends with their reasons, and what a call on this machine
uses. Then every op runs with every backend that can, against the reference.

The test takes about ten seconds, and longer where Triton compiles its kernels first.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
from collections.abc import Iterator

import torch

from pygen.backends import available_backends, build_info
from pygen.cli.model import chosen_device
from pygen.cli.parser import FAILED, one_line
from pygen.cli.self_test import self_test
from pygen.models.versions import NEWEST_TESTED, OLDEST_TESTED
from pygen.ops import DISPATCHERS

_VARIABLES = ("PYGEN_BACKEND", "PYGEN_CPU_ISA", "TRITON_INTERPRET", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES")

Lines = Iterator[tuple[str, str]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", metavar="DEVICE", help="cpu, cuda, ... (default: cuda where there is one)")
    parser.add_argument("--no-test", action="store_true", help="leave the test of the ops out")


def run(arguments: argparse.Namespace) -> int:
    device = chosen_device(arguments.device)
    for title, lines in (
        ("versions", versions(arguments.version)),
        ("backends", backends()),
        (f"a call on {device}", choices(device)),
    ):
        print(title)
        for name, text in lines:
            print(f"  {name:<16}{text}")
    return 0 if arguments.no_test else _test(device)


def _test(device: torch.device) -> int:
    print("test of the ops against the reference")
    failed = 0
    for result in self_test(device):
        failed += result.problem is not None
        words = "ok" if result.problem is None else f"FAILED: {one_line(result.problem)}"
        print(f"  {result.op:<16}{result.backend:<8}{words} ({result.seconds:.2f} s)", flush=True)
    if failed:
        print(f"{failed} tests failed")
    return FAILED if failed else 0


def versions(version: str) -> Lines:
    yield "pygen", f"{version}, {_build()}"
    yield "Python", f"{platform.python_version()} on {platform.platform()}"
    yield "torch", f"{torch.__version__}, CUDA {torch.version.cuda or 'none'}"
    for index in range(torch.cuda.device_count()):
        major, minor = torch.cuda.get_device_capability(index)
        yield f"cuda:{index}", f"{torch.cuda.get_device_name(index)}, compute capability {major}.{minor}"
    yield "triton", _installed("triton")
    yield "transformers", f"{_installed('transformers')} (tested: {OLDEST_TESTED} to {NEWEST_TESTED})"
    for name in _VARIABLES:
        if name in os.environ:
            yield name, os.environ[name]


def _build() -> str:
    try:
        build = build_info()
    except (ImportError, ValueError) as error:
        return f"extension: {one_line(error)}"
    cuda = f"CUDA kernels for {_joined(build['cuda_archs'])}" if build["cuda"] else "no CUDA kernels"
    threads = "with OpenMP" if build["openmp"] else "without OpenMP"
    return f"extension {build['version']}, {build['compiler']}, {threads}, {cuda}"


def _joined(names: object) -> str:
    return ", ".join(map(str, names)) if isinstance(names, (list, tuple)) else str(names)


def _installed(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def backends() -> Lines:
    for name, reason in available_backends().items():
        words = "runs" if reason is None else f"cannot run: {one_line(reason)}"
        if name == "cpu" and reason is None:
            build = build_info()
            words += f", {build['cpu_isa']} of {_joined(build['cpu_isas'])}"
        yield name, words


def choices(device: torch.device) -> Lines:
    steps = "captured in a CUDA graph where a call is long enough" if device.type == "cuda" else "launched one by one"
    yield "steps", steps
    yield "threads", str(torch.get_num_threads())
    for op, dispatcher in DISPATCHERS.items():
        name, passed_over = dispatcher.choose(device)
        yield op, "; ".join([name, *map(one_line, passed_over)])
