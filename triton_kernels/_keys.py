"""The keys by which Triton finds compiled kernels in its cache on disk."""

from __future__ import annotations

import functools
import importlib
import pkgutil

from triton.runtime.jit import JITFunction

_PACKAGE = __name__.rpartition(".")[0]


@functools.cache
def settle() -> None:
    """Computes the keys of all functions in one order, once per process.

    Triton leaves the constants of a function out of its caller's key if it meets the function there first. A key would
    depend on which kernel ran first in the process, and the cache would often miss.
    """
    for info in sorted(pkgutil.iter_modules(importlib.import_module(_PACKAGE).__path__), key=lambda info: info.name):
        for value in vars(importlib.import_module(f"{_PACKAGE}.{info.name}")).values():
            if isinstance(value, JITFunction):
                value.cache_key  # noqa: B018
