"""Spells out an op's signature for its readers, while its implementation takes the table's knobs by name."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar, cast

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


def implemented_by(
    function: Callable[..., Result],
) -> Callable[[Callable[Parameters, Result]], Callable[Parameters, Result]]:
    """Decorates a documented signature: calls go to `function`, and the body never runs.

    `function` takes knobs as `**knobs`, so that a call reaches the checks without another list of knobs. A test
    compares its other parameters with the signature.
    """

    def declare(signature: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
        return cast("Callable[Parameters, Result]", functools.update_wrapper(function, signature))

    return declare
