"""nvcc's output for the CUDA kernels: the targets, and the registers, shared memory and spills of each kernel."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from pygen import _C

BUILD = _C.build_info()
ROOT = Path(__file__).resolve().parent.parent
# Known bytes of registers spilled to local memory, with the functions that are not inlined: in the draws of beams with
# shaped scores, and of float16 rows without filters.
SPILLS_AT_MOST = {"select_continuationsILNS_5DTypeE.ELb1ELb1": 340, "sample_rowsILNS_5DTypeE1ELNS0_4RowsE1": 32}


def reports() -> dict[tuple[str, str], dict[str, int]]:
    """Returns {(target, mangled kernel): registers, stack, spills (bytes stored and loaded)}, from ptxas's reports."""
    usage: dict[tuple[str, str], dict[str, int]] = {}
    folder = ROOT / "build" / f"cmake-{sys.implementation.cache_tag}"
    for path in folder.glob("CMakeFiles/pygen_cuda.dir/csrc/cuda/*.report"):
        if not path.with_suffix("").exists():
            continue  # The report of a source file that is gone.
        key = ("", "")
        for line in path.read_text().splitlines():
            if match := re.search(r"Compiling entry function '(\S+)' for 'sm_(\d+)'", line):
                key = (match[2], match[1])
            elif match := re.search(
                r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line
            ):
                if key not in usage:
                    usage[key] = {"stack": int(match[1]), "spills": int(match[2]) + int(match[3])}
            elif match := re.search(r"Used (\d+) registers", line):
                usage.setdefault(key, {})["registers"] = int(match[1])
    return usage


@pytest.mark.skipif(not BUILD["cuda"], reason=f"built without CUDA: {BUILD['cuda_reason']}")
def test_registers_and_spills_of_every_kernel(capsys: pytest.CaptureFixture[str]) -> None:
    usage = reports()
    with capsys.disabled():
        print(f"\n{'kernel':90} {'sm':>4} {'registers':>9} {'stack':>6} {'spills':>6}")
        for (target, kernel), row in sorted(usage.items(), key=lambda item: item[0][::-1]):
            print(f"{kernel[:90]:90} {target:>4} {row['registers']:>9} {row['stack']:>6} {row['spills']:>6}")
    assert {f"sm_{target}" for target, _ in usage} == {arch for arch in BUILD["cuda_archs"] if arch.startswith("sm_")}
    # A mangled name holds that of the file, <op>.cu or <op>_*.cu.
    for op in ("sample", "beam_step", "process_logits", "token_logprobs", "verify_draft"):
        assert any(re.search(rf"\d_{op}(_\w+)?_cu_", kernel) for _, kernel in usage), f"no kernel of {op} in {usage}"
    for (target, kernel), row in usage.items():
        limit = max((bound for name, bound in SPILLS_AT_MOST.items() if re.search(name, kernel)), default=0)
        assert row["spills"] <= limit, f"{kernel} for sm_{target}: {row['spills']} bytes are spilled"
