"""Watches that Triton kernels are launched in the forms that are compiled ahead of time, and in no other."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager

from pygen.triton_kernels._specialization import Specialization, observers


@contextmanager
def only_listed_launches() -> Iterator[None]:
    """A launch of anything that its module's `specializations()` lacks is an AssertionError."""
    observers.append(_check)
    try:
        yield
    finally:
        observers.remove(_check)


def _check(launched: Specialization) -> None:
    listed = importlib.import_module(launched.kernel.fn.__module__).specializations()
    assert any(_form(launched) == _form(one) for one in listed), f"{launched} is not in specializations()"


def _form(specialization: Specialization) -> tuple[object, ...]:
    return specialization.kernel, specialization.signature, specialization.constexprs, specialization.num_warps
