"""Triton kernels in a checkout that is on the path but not installed: their folder is the one beside `pygen`.

An installation puts the files of that folder here, in place of this one (see `setup.py`).
"""

from pathlib import Path

__path__ = [str(Path(__file__).resolve().parents[2] / "triton_kernels")]
