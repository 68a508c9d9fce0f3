"""`python -m tests.fuzz --seconds 60`: random calls of every CPU op under ASan, UBSan and TSan, for 60 s in total.

Python calls compare results with the reference (calls.py). Then C++ calls run in many threads (threads.cpp). A failure
prints its seed: `python -m tests.fuzz --seed SEED --seconds 0` repeats that call alone.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys

from tests.helpers import cuda_host

ROOT = cuda_host.ROOT
BUILD = ROOT / "build" / f"fuzz-{sys.implementation.cache_tag}"


def build() -> None:
    import pybind11

    BUILD.mkdir(parents=True, exist_ok=True)
    if not (BUILD / "build.ninja").exists():
        cuda_host.run(
            cuda_host.tool("cmake"), "-S", str(ROOT / "tests/fuzz"), "-B", str(BUILD), "-G", "Ninja",
            f"-DCMAKE_MAKE_PROGRAM={cuda_host.tool('ninja')}", f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}", f"-DPYGEN_OUTPUT_DIR={BUILD}",
        )  # fmt: skip
    cuda_host.run(cuda_host.tool("cmake"), "--build", str(BUILD))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="of both parts together, without the build")
    parser.add_argument("--seed", type=int, default=None, help="of the first call; drawn and printed when missing")
    arguments = parser.parse_args()
    seed = random.randrange(10**9) if arguments.seed is None else arguments.seed
    build()
    print(f"seed {seed}", flush=True)
    parts = [
        ([sys.executable, "-m", "tests.fuzz.calls", str(seed), str(arguments.seconds * 0.6)], {"OMP_NUM_THREADS": "2"}),
        ([str(BUILD / "threads"), str(seed), str(arguments.seconds * 0.4)], {"TSAN_OPTIONS": "halt_on_error=1"}),
    ]
    for command, variables in parts:
        environment = cuda_host.environment(**variables)
        if "TSAN_OPTIONS" in variables:
            del environment["LD_PRELOAD"]
        if subprocess.run(command, cwd=ROOT, env=environment).returncode != 0:
            print(f"failed: {' '.join(command)}")
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
