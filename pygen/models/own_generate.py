"""Whose `generate` a call came through: pygen's in the place of another (`pygen.patch`), or a model class's own."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

MISSING: Any = object()

_below: ContextVar[bool] = ContextVar("below_own_generate", default=False)


@contextlib.contextmanager
def below_own_generate(below: bool) -> Iterator[None]:
    """Says that the model's own `generate` made this call, with `super()`: it is in force and need not be refused."""
    token = _below.set(below)
    try:
        yield
    finally:
        _below.reset(token)


def own_generate_runs() -> bool:
    return _below.get()


def unpatched(cls: type, name: str, default: Any = None) -> Any:
    """The attribute of a class or its bases, unbound, as if `pygen.patch` had not touched them."""
    for base in cls.__mro__:
        attribute = vars(base).get(name, MISSING)
        attribute = getattr(attribute, "pygen_original", attribute)
        if attribute is not MISSING:
            return attribute
    return default
