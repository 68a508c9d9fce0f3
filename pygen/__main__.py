"""The program: `python -m pygen`, and the script `pygen`."""

from __future__ import annotations

import sys

from pygen import __version__
from pygen.cli.main import main


def program() -> int:
    """Runs the command line of this process and returns its exit code."""
    return main(sys.argv[1:], version=__version__)


if __name__ == "__main__":
    sys.exit(program())
