"""Mutants of the reference: edits of its source, planted where the torch backend imports it."""

from __future__ import annotations

import importlib
import inspect
import sys
import types
from collections.abc import Sequence
from typing import NamedTuple

import pytest


class Fault(NamedTuple):
    name: str
    module: str
    edits: list[tuple[str, str]]


def fault(name: str, module: str, *edits: tuple[str, str]) -> Fault:
    return Fault(name, module, list(edits))


def source_of(module: str) -> str:
    return inspect.getsource(importlib.import_module(module))


def plant(monkeypatch: pytest.MonkeyPatch, planted: Fault, modules: Sequence[str]) -> None:
    """Replaces `modules`, in their import order, with copies that have the edits of `planted`."""
    for name in modules:
        source = source_of(name)
        for old, new in planted.edits if name == planted.module else ():
            assert source.count(old) == 1, f"{old!r} occurs {source.count(old)} times in {name}"
            source = source.replace(old, new)
        copy = types.ModuleType(name)
        monkeypatch.setitem(sys.modules, name, copy)
        package, _, stem = name.rpartition(".")
        monkeypatch.setattr(sys.modules[package], stem, copy)
        exec(compile(source, name, "exec"), copy.__dict__)
