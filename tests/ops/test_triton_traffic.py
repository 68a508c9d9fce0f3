"""Triton, counted by the interpreter: `sample` needs at most two launches and at most two loads of a logit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from typing import Any

import pytest

from tests.helpers.triton_traffic import CASES, SMALL


@cache
def measured() -> dict[tuple[str, str, int], dict[str, Any]]:
    """Returns the counts from a separate process, which selects the interpreter before it imports Triton."""
    command = [sys.executable, "-m", "tests.helpers.triton_traffic"]
    lines = subprocess.run(
        command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    return {tuple(result.pop("case")): result for result in map(json.loads, lines)}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_traffic(case: tuple[str, str, int]) -> None:
    traffic, small = measured()[case], case[2] <= SMALL
    assert traffic["launches"] == (1 if small else 2)
    assert 1 <= traffic["least"] <= traffic["most"] <= (1 if small else 2)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_step_makes_no_tensor_and_asks_none(case: tuple[str, str, int]) -> None:
    """Otherwise a CUDA graph could not capture the step."""
    assert set(measured()[case]["torch_ops"]) <= {"aten.detach.default"}


def test_rereading_is_counted() -> None:
    """A filter reads again only the blocks that may hold kept tokens."""
    assert any(traffic["most"] == 2 for traffic in measured().values())
