"""Distinguishes calls through a patched `generate` (`pygen.patch`) from calls through a model class's own."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

MISSING = object()

_below: ContextVar[bool] = ContextVar("below_own_generate", default=False)


@contextlib.contextmanager
def below_own_generate(below: bool) -> Iterator[None]:
    """Within the block, `own_generate_runs()` is `below`: the model's own `generate` made this call, with `super()`."""
    token = _below.set(below)
    try:
        yield
    finally:
        _below.reset(token)


def own_generate_runs() -> bool:
    """Whether the model's own `generate` made this call, so that pygen need not refuse a class that has one."""
    return _below.get()


def unpatched(cls: type, name: str, default: object = None) -> Any:
    """The unbound attribute of a class or its bases, as if `pygen.patch` had not changed them."""
    for base in cls.__mro__:
        attribute = vars(base).get(name, MISSING)
        attribute = getattr(attribute, "pygen_original", attribute)
        if attribute is not MISSING:
            return attribute
    return default
