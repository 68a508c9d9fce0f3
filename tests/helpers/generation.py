"""`generate` for tests that know what it returns: each function checks the kind and has it as its type."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from torch import Tensor

from pygen.generate import generate
from pygen.outputs import GenerateOutput

Parameters = ParamSpec("Parameters")
Kind = TypeVar("Kind")


def returning(kind: type[Kind], function: Callable[Parameters, object]) -> Callable[Parameters, Kind]:
    """`function`, which must return a `kind`."""

    @functools.wraps(function)
    def checked(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Kind:
        result = function(*args, **kwargs)
        assert isinstance(result, kind), f"expected {kind.__name__}, got {type(result).__name__}"
        return result

    return checked


def with_fields(function: Callable[Parameters, object]) -> Callable[Parameters, Any]:
    """`function`, which must return an output. Its type is Any, because the settings decide which fields it has."""
    return returning(GenerateOutput, function)


generate_tokens = returning(Tensor, generate)
generate_output = with_fields(generate)
