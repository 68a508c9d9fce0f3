"""The keys of Triton 3.6's cache: without care they depend on which kernel ran first in the process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.triton_compile import ops

ROOT = Path(__file__).resolve().parents[2]
KEYS = """
import sys
from tests.helpers.triton_compile import specializations
from pygen.triton_kernels._keys import settle
kernels = {one.kernel.__name__: one.kernel for op in sys.argv[2:] for one in specializations(op)}
if sys.argv[1] == "settled":
    settle()
keys = [(name, kernel.cache_key) for name, kernel in kernels.items()]
print(sorted(keys))
"""


def keys(*arguments: str) -> str:
    done = subprocess.run([sys.executable, "-c", KEYS, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(("how", "equal"), [("settled", True), ("as met", False)])
def test_keys_do_not_depend_on_the_first_call(how: str, equal: bool) -> None:
    assert (keys(how, *ops()) == keys(how, *ops()[::-1])) is equal
