"""Repeats the recorded calls with pygen."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from pygen.generate import generate
from tests.oracles import cases


@functools.cache
def recording(search: str) -> dict[str, Any]:
    """Returns the recorded results of a search."""
    result: dict[str, Any] = json.loads(Path(cases.__file__).with_name(f"{search}.json").read_text())
    return result


def assert_same_models(search: str) -> None:
    for family, expected in recording(search)["fingerprints"].items():
        assert cases.fingerprint(family) == pytest.approx(expected, abs=0.05), family


def assert_as_recorded(search: str, name: str) -> None:
    """Asserts equal tokens, and equal shapes and sums of every field."""
    family, asked = cases.RECORDINGS[search][name]
    torch.manual_seed(0)
    result = cases.recorded(generate(cases.seeded_model(family), **cases.arguments(asked)))
    expected = recording(search)["results"][name]
    assert result["sequences"] == expected["sequences"]
    assert {field for field, entries in result.items() if entries} == expected.keys()
    assert result.get("cache_length") == expected.get("cache_length")
    for field in expected.keys() - {"sequences", "cache_length"}:
        for (shape, total), (expected_shape, expected_total) in zip(result[field], expected[field], strict=True):
            assert shape == expected_shape
            assert total == pytest.approx(expected_total, rel=1e-3, abs=1e-2)
