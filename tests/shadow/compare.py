"""Runs one call in both libraries, and finds all differences of the results."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationMixin

from pygen.generate import generate

EVERYTHING: dict[str, Any] = {
    "return_dict_in_generate": True,
    "output_scores": True,
    "output_logits": True,
    "output_attentions": True,
    "output_hidden_states": True,
}
_TOLERANCE = {"rtol": 1e-3, "atol": 1e-3}


def result_of(call: Callable[[], Any], seed: int = 3) -> Any:
    """Returns the result of `call` under `seed`, or the exception that it raises."""
    torch.manual_seed(seed)
    try:
        return call()
    except Exception as error:
        return error


def by_pygen(model: Any, *args: Any, **kwargs: Any) -> Any:
    return result_of(lambda: generate(model, *args, **kwargs))


def by_transformers(model: Any, *args: Any, **kwargs: Any) -> Any:
    return result_of(lambda: GenerationMixin.generate(model, *args, **kwargs))


def differences(ours: Any, theirs: Any, ignored: tuple[str, ...] = ()) -> list[str]:
    """Returns every field in which two results differ, and how. ignored: suffixes of names to skip."""
    if not hasattr(theirs, "sequences"):
        return list(_differences("", ours, theirs))
    found = [] if isinstance(ours, type(theirs)) else [f"{type(ours).__name__} for {type(theirs).__name__}"]
    names, wanted = ([name for name in output if not name.endswith(ignored)] for output in (ours, theirs))
    if names != wanted:
        found.append(f"{names} for {wanted}")
    for name in wanted:
        found += _differences(name, ours.get(name), theirs[name])
    return found


def _differences(path: str, ours: Any, theirs: Any) -> Iterator[str]:
    if isinstance(theirs, Tensor):
        # The rows of a cache may have another order.
        yield from _of_tensors(path, ours, theirs, values="cache" not in path and "past_key_values" not in path)
    elif isinstance(theirs, (tuple, list)):
        if type(ours) is not type(theirs) or len(ours) != len(theirs):
            yield f"{path}: {_shape(ours)} for {_shape(theirs)}"
            return
        for i, (x, y) in enumerate(zip(ours, theirs, strict=True)):
            yield from _differences(f"{path}[{i}]", x, y)
    elif hasattr(theirs, "get_seq_length"):
        if type(ours) is not type(theirs):
            yield f"{path}: {type(ours).__name__} for {type(theirs).__name__}"
        else:
            x, y = _length(ours), _length(theirs)
            if x != y:
                yield f"{path}: of {x} positions for {y}"
    elif type(ours) is not type(theirs):
        yield f"{path}: {type(ours).__name__} for {type(theirs).__name__}"


def _of_tensors(path: str, ours: Any, theirs: Tensor, values: bool) -> Iterator[str]:
    if not isinstance(ours, Tensor) or ours.shape != theirs.shape or ours.dtype != theirs.dtype:
        yield f"{path}: {_shape(ours)} for {_shape(theirs)}"
    elif values and not torch.allclose(
        ours, theirs, equal_nan=True, **({} if not theirs.is_floating_point() else _TOLERANCE)
    ):
        yield f"{path}: other values"


def _length(cache: Any) -> int | None:
    with contextlib.suppress(Exception):  # caches of recurrent states have no length
        return int(cache.get_seq_length())
    return None


def _shape(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{value.dtype} {tuple(value.shape)}"
    if isinstance(value, (tuple, list)):
        return f"{type(value).__name__} of {len(value)}"
    return type(value).__name__
