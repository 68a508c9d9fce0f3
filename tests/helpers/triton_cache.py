"""Compiles every form of the Triton kernels as launches on a GPU do, and packs them for a machine with one.

python -m tests.helpers.triton_cache [--op OP]

Triton's own runtime launches each form over a stand-in for the driver of a GPU of compute capability 9.0. Its key of a
form depends on what a launch passes, so it would not find one that was compiled ahead of time.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.prebuilt import ROOT
from benchmarks.triton_forms import PACKED, pack
from tests.helpers.triton_compile import ops, resources, specializations

CACHE = ROOT / "build" / "triton-forms"
WORKERS = 2


def compile_op(op: str) -> None:
    """Compiles the forms of one op into TRITON_CACHE_DIR, prints their resources, and lists their folders there."""
    from tests.helpers.stand_in_gpu import Launches, compiled, launch_form, stand_in_gpu

    forms: list[str] = []
    too_much: list[str] = []
    with tempfile.TemporaryDirectory() as folder, stand_in_gpu():
        Launches(Path(folder))
        for one in specializations(op):
            before = {id(kernel) for kernel in compiled(one.kernel)}
            launch_form(one)
            (new,) = [kernel for kernel in compiled(one.kernel) if id(kernel) not in before]
            registers, stack = resources(new.asm["cubin"])
            used = f"{registers:4} registers {new.metadata.shared:6} shared {stack:4} stack"
            print(f"{op:16} {one.name:24} {used}", flush=True)
            forms += {Path(path).parent.name for path in new.metadata_group.values()}
            if stack > 0:
                too_much.append(f"{one.name} has a stack of {stack} bytes")
    (CACHE / f"{op}.forms").write_text("\n".join(forms))
    assert not too_much, too_much


def main() -> int:
    parser = argparse.ArgumentParser(description="Compiles and packs every form of the Triton kernels.")
    parser.add_argument("--op", help="compile the forms of one op, and pack nothing")
    args = parser.parse_args()
    if args.op:
        compile_op(args.op)
        return 0

    def separate(op: str) -> int:
        # A separate process launches: this one may have Triton's interpreter, and its driver stays as it is.
        environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
        environment["TRITON_CACHE_DIR"] = str(CACHE)
        return subprocess.run([sys.executable, "-m", __spec__.name, "--op", op], env=environment).returncode

    CACHE.mkdir(parents=True, exist_ok=True)
    # The longest first.
    order = sorted(ops(), key=lambda op: -len(specializations(op)))
    with ThreadPoolExecutor(WORKERS) as pool:
        codes = dict(zip(order, pool.map(separate, order), strict=True))
    failed = [op for op, code in codes.items() if code]
    if failed:
        print(f"failed: {', '.join(failed)}")
        return 1
    forms = [CACHE / name for op in order for name in (CACHE / f"{op}.forms").read_text().split()]
    pack(forms)
    print(f"{PACKED}: {len(forms)} forms, {PACKED.stat().st_size / 2**20:.1f} MiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
