"""Runs a compiler and saves its stderr in a file beside the object. CMake launches nvcc with it.

tests/test_cuda_build.py reads registers and spills from that report.
"""

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
