"""A failed allocation in any thread of a kernel raises MemoryError and changes nothing."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.helpers.out_of_memory import CASES

ROOT = Path(__file__).resolve().parents[2]


def test_every_allocation_may_fail(tmp_path: Path) -> None:
    compiler = shutil.which("gcc") or shutil.which("cc")
    assert compiler is not None, "needs the C compiler that the extension is built with"
    library = tmp_path / "failing_realloc.so"
    source = ROOT / "tests/helpers/failing_realloc.c"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(source), "-ldl"], check=True)
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    result = subprocess.run(
        [sys.executable, "-m", "tests.helpers.out_of_memory", str(library)],
        cwd=ROOT,
        env={**environment, "LD_PRELOAD": str(library)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    counts = dict(line.split(": ") for line in result.stdout.splitlines())
    assert counts.keys() == {f"{case.name}, {threads} threads" for case in CASES for threads in (1, 3)}
    assert all(int(count) > 0 for name, count in counts.items() if not name.startswith("beam_finalize"))
