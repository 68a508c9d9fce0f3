"""Builds and loads the CUDA kernels for a host compiler (tests/cuda_host), and raises their failures.

The modules use AddressSanitizer, which a process must load first. `environment()` returns the variables for such a
process; `python -m tests.helpers.cuda_host FILE ...` runs a Python file (or `-m MODULE ...`) in one.
"""

from __future__ import annotations

import fcntl
import functools
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.machinery import EXTENSION_SUFFIXES, ExtensionFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
# Comma-separated ops whose <op>.cu and <op>_*.cu to compile; all if empty. Use it while some files do not compile.
OPS = os.environ.get("PYGEN_CUDA_HOST_OPS", "")
BUILD = ROOT / "build" / "-".join(filter(None, ["cuda_host", sys.implementation.cache_tag, OPS.replace(",", "-")]))
SANITIZERS = ("libasan.so", "libubsan.so")


def tool(name: str) -> str:
    path = os.pathsep.join([str(Path(sys.executable).parent), *os.get_exec_path()])
    tool = shutil.which(name, path=path)
    if tool is None:
        raise RuntimeError(f"the CUDA kernels cannot be built for the host: no `{name}` found")
    return tool


def run(*command: str) -> str:
    # Compilers must not inherit the preloaded sanitizers.
    plain = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    result = subprocess.run(command, capture_output=True, text=True, env=plain)
    if result.returncode != 0:
        raise RuntimeError(f"`{' '.join(command)}` failed:\n{result.stdout}{result.stderr}")
    return result.stdout


@functools.cache
def build(*targets: str) -> Path:
    """Builds all modules, or `targets`, if a source changed; returns their folder."""
    import pybind11

    BUILD.mkdir(parents=True, exist_ok=True)
    with open(BUILD / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (BUILD / "build.ninja").exists():
            run(
                tool("cmake"), "-S", str(ROOT / "tests/cuda_host"), "-B", str(BUILD), "-G", "Ninja",
                f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}", f"-DPython_EXECUTABLE={sys.executable}",
                f"-Dpybind11_DIR={pybind11.get_cmake_dir()}", f"-DPYGEN_OUTPUT_DIR={BUILD}",
                f"-DPYGEN_HOST_OPS={OPS.replace(',', ';')}",
            )  # fmt: skip
        run(tool("cmake"), "--build", str(BUILD), "--target", *(targets or ("all",)))
    return BUILD


def sanitizer_libraries() -> list[str]:
    """Returns the paths of the sanitizers' runtimes; raises RuntimeError if the compiler has none."""
    paths = [run(tool("g++"), f"-print-file-name={name}").strip() for name in SANITIZERS]
    missing = [name for name, path in zip(SANITIZERS, paths, strict=True) if not Path(path).is_absolute()]
    if missing:
        raise RuntimeError(f"g++ has no {' and no '.join(missing)}: the CUDA kernels cannot be tested on the host")
    return paths


def environment(**variables: str) -> dict[str, str]:
    """Returns os.environ for a process that can load the modules."""
    options = {"ASAN_OPTIONS": "detect_leaks=0", "UBSAN_OPTIONS": "print_stacktrace=1", "OMP_NUM_THREADS": "1"}
    return {**os.environ, **options, "LD_PRELOAD": " ".join(sanitizer_libraries()), **variables}


@functools.cache
def load(file: str, name: str) -> ModuleType:
    """Loads module `name` from the built file `file`."""
    if SANITIZERS[0] not in os.environ.get("LD_PRELOAD", ""):
        raise RuntimeError(f"{SANITIZERS[0]} is not preloaded: start Python with tests.helpers.cuda_host.environment()")
    path = str(build(file) / f"{file}{EXTENSION_SUFFIXES[0]}")
    loader = ExtensionFileLoader(f"cuda_host.{name}", path)
    spec = importlib.util.spec_from_file_location(loader.name, path, loader=loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def kernels() -> ModuleType:
    """Loads the counterpart of a CUDA build of pygen._C, which runs on the CPU."""
    return load("_C", "_C")


def host(file: str = "_C") -> ModuleType:
    """Loads the runtime in `file`: failures, counted loads, the device, the order of threads."""
    return load(file, "_host")


def failure_text(failure: dict[str, Any]) -> str:
    location = f"block {failure['block']}, thread {failure['thread']}: " if failure["thread"] >= 0 else ""
    times = f" ({failure['count']} times)" if failure["count"] > 1 else ""
    return f"{failure['kind']} in {failure['kernel']}: {location}{failure['text']} [{failure['where']}]{times}"


def raise_failures() -> None:
    """Raises AssertionError with all failures of kernels since the last call."""
    failures = "\n".join(map(failure_text, host().take_failures()))
    assert not failures, failures


@contextmanager
def _here(device: object) -> Iterator[tuple[int, int]]:
    yield 0, 0


@contextmanager
def _in_place_of_cuda() -> Iterator[None]:
    from pygen.ops import _cuda

    kept = _cuda.kernels, _cuda.on
    _cuda.kernels, _cuda.on = kernels, _here
    try:
        yield
    finally:
        _cuda.kernels, _cuda.on = kept
        raise_failures()


def entry(cuda_entry: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps a CUDA entry of an op, so that it runs the host-compiled kernels on CPU tensors.

    The call, and the run that it may return, raise AssertionError with all failures of the kernels.
    """

    def wrapped(*arguments: Any) -> Any:
        with _in_place_of_cuda():
            result = cuda_entry(*arguments)
        if not callable(result):
            return result

        def run(*step: Any) -> None:
            with _in_place_of_cuda():
                result(*step)

        return run

    return wrapped


def main(arguments: list[str]) -> int:
    build()
    return subprocess.run([sys.executable, *arguments], env=environment(), cwd=ROOT).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
