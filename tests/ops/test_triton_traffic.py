"""Triton, counted by the interpreter: `sample` needs at most two launches and at most two loads of a logit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from typing import Any

import pytest

from tests.helpers.triton_traffic import CASES, DRAFTS, FILTERS, HISTORIES, SMALL


@cache
def measured() -> dict[tuple[Any, ...], dict[str, Any]]:
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
    assert any(measured()[case]["most"] == 2 for case in CASES)


@pytest.mark.parametrize("length", HISTORIES)
def test_a_long_history_is_read_once(length: int) -> None:
    """A short one is read by every program of the row."""
    traffic = measured()["history", length]
    assert traffic["programs"] > 1
    readers = 1 if length >= 4096 else traffic["programs"]
    assert traffic["most"] == traffic["least"] == readers


def test_few_survivors_move_to_the_list_before_the_next_filter() -> None:
    """Moving them takes the place of the race's load of every score; too many stay, and are loaded by every turn."""
    loads = {name: measured()[("filters", name[0], name[1])]["most"] for name in FILTERS}
    assert loads["spread", "two"] <= loads["spread", "one"]
    assert loads["ties", "two"] > loads["ties", "one"]


@pytest.mark.parametrize("case", DRAFTS, ids=str)
def test_drafts(case: tuple[int, float]) -> None:
    """Two launches; besides the facts of a position, only the race behind the drafts loads logits."""
    traffic, drawn = measured()[("drafts", case[0], case[1])], case[1] > 0
    assert traffic["launches"] == 2
    assert traffic["passed"] == [case[0]] * 2
    # A draft's logit, and that of the target for it, are loaded once more by every program of the row.
    assert traffic["target_least"] == 1
    assert traffic["drafts_least"] == int(drawn)
