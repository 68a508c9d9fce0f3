"""Checks that every launch of a Triton kernel uses a form that is compiled ahead of time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

from pygen.triton_kernels._specialization import Specialization, observers

from tests.helpers.triton_compile import ops, specializations


@contextmanager
def only_listed_launches() -> Iterator[None]:
    """Raises AssertionError for a launch that the `specializations()` of no op list."""
    observers.append(_check)
    try:
        yield
    finally:
        observers.remove(_check)


def _check(launched: Specialization) -> None:
    assert any(_form(launched) == _form(one) for one in _listed()), f"{launched} is not in specializations()"


@lru_cache
def _listed() -> list[Specialization]:
    return [one for op in ops() for one in specializations(op)]


def _form(specialization: Specialization) -> tuple[object, ...]:
    return (
        specialization.kernel,
        specialization.signature,
        specialization.constexprs,
        specialization.num_warps,
        specialization.max_registers,
        specialization.dependent,
    )
