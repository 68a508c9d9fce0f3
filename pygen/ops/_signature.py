"""How an op has its signature written out for its readers, and takes the knobs of the table by name."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar, cast

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


def implemented_by(
    function: Callable[..., Result],
) -> Callable[[Callable[Parameters, Result]], Callable[Parameters, Result]]:
    """Decorates a signature with its documentation: calls go to `function`, and the body never runs.

    `function` takes knobs as `**knobs`, so that no list of them stands between a call and its checks. A test compares
    the rest of its parameters with the signature.
    """

    def declare(signature: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
        return cast("Callable[Parameters, Result]", functools.update_wrapper(function, signature))

    return declare
