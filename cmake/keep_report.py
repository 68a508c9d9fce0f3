"""Runs a compiler and keeps what it said in a file beside the object: CMake's launcher for nvcc, whose report of
registers and spills tests/test_cuda_build.py reads."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def main(command: list[str]) -> int:
    result = subprocess.run(command, stderr=subprocess.PIPE, text=True)
    if "-o" in command:
        Path(command[command.index("-o") + 1] + ".report").write_text(result.stderr)
    if result.returncode != 0:
        sys.stderr.write(result.stderr)
    return result.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
