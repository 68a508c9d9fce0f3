"""The checks of numbers that an op takes for all rows or per row: knobs, seeds and steps."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from numbers import Integral, Real
from typing import cast

import torch
from torch import Tensor

from pygen.ops import _checks as checks
from pygen.ops._checks import Like
from pygen.ops._plain import check_plain
from pygen.rng import as_int64
from pygen.rules import NumberRule, number

FINITE_POSITIVE = number("(0, inf)")
FINITE_NON_NEGATIVE = number("[0, inf)")
LARGEST_INT = 2**63 - 1
SEED_LIMIT = 2**64
STEP_LIMIT = 2**32
_SMALLEST_FLOAT32 = 2.0**-149


def float_knob(name: str, value: object, rule: NumberRule, like: Like) -> float | Tensor:
    """Checks a number, or one per row in a list or a floating (rows,) tensor, and returns float32.

    The rule applies to the float32 value. Tensors are copied; one without dimensions is a number.
    """
    value = number_or_rows(name, value, Real, torch.float64, like)
    if isinstance(value, Tensor):
        if not value.is_floating_point():
            raise TypeError(
                f"`{name}` must be a number or a floating point tensor, got a tensor of {checks.dtype_name(value)}"
            )
        return _per_row(name, value, value.to(torch.float32, copy=True).contiguous(), rule, like)
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"`{name}` must be a number or a (rows,) tensor, got {type(value).__name__}")
    rounded = _to_float32(cast(float, value))
    if not rule.holds(rounded):
        raise ValueError(f"`{name}` must be {rule.range}, got {value}")
    return rounded


def temperature_knob(value: object, rule: NumberRule, like: Like) -> float | Tensor:
    """As `float_knob`. A positive temperature that float32 rounds to 0 becomes the smallest float32, and not greedy."""
    value = number_or_rows("temperature", value, Real, torch.float64, like)
    if isinstance(value, Tensor):
        if value.is_floating_point() and value.dtype.itemsize > 4:
            value = torch.where((value > 0) & (value < _SMALLEST_FLOAT32), _SMALLEST_FLOAT32, value)
    elif isinstance(value, Real) and 0 < float(value) < _SMALLEST_FLOAT32:
        value = _SMALLEST_FLOAT32
    return float_knob("temperature", value, rule, like)


def int_knob(name: str, value: object, rule: NumberRule, like: Like) -> int | Tensor:
    """Checks an int, or one per row in a list or a (rows,) int64 or int32 tensor, and returns int64.

    Tensors are copied; one without dimensions is an int.
    """
    value = number_or_rows(name, value, Integral, torch.int64, like)
    if isinstance(value, Tensor):
        if value.dtype not in (torch.int64, torch.int32):
            raise TypeError(f"`{name}` must be an int or an int64 tensor, got a tensor of {checks.dtype_name(value)}")
        return _per_row(name, value, value.to(torch.int64, copy=True).contiguous(), rule, like)
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"`{name}` must be an int or a (rows,) tensor, got {type(value).__name__}")
    if not rule.holds(value):
        raise ValueError(f"`{name}` must be {rule.range}, got {value}")
    return min(int(value), LARGEST_INT)


def bool_knob(name: str, value: object, like: Like) -> bool | Tensor:
    """Checks a bool, or one per row in a list or a (rows,) bool tensor.

    Tensors are copied; one without dimensions is a bool.
    """
    value = number_or_rows(name, value, bool, torch.bool, like)
    if isinstance(value, Tensor):
        checks.check_dtype(name, value, torch.bool)
        checks.check_shape(name, value, "(rows,)", (like.rows,))
        checks.check_device(name, value, like.device, like.name)
        return value.clone()
    if not isinstance(value, bool):
        raise TypeError(f"`{name}` must be a bool or a (rows,) bool tensor, got {type(value).__name__}")
    return value


def seed_words(name: str, value: object, like: Like) -> Tensor:
    """Returns row seeds, (rows,) int64 bit patterns, from such a tensor (copied) or from one int per row."""
    if isinstance(value, Tensor):
        checks.check_dtype(name, value, torch.int64)
        checks.check_shape(name, value, "(rows,)", (like.rows,))
        checks.check_device(name, value, like.device, like.name)
        return value.clone().contiguous()
    words = checks.int_list(name, value)
    for word in words:
        check_seed(name, word)
    if len(words) != like.rows:
        raise ValueError(f"`{name}` must be an int or hold one int per row, {like.rows}, got {len(words)}")
    return torch.tensor([as_int64(word) for word in words], dtype=torch.int64, device=like.device)


def check_seed(name: str, value: int) -> None:
    if not 0 <= value < SEED_LIMIT:
        raise ValueError(f"`{name}` must be in [0, 2**64), got {value}")


def _to_float64(value: float) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def _to_int64(value: float) -> int:
    return max(-LARGEST_INT, min(int(value), LARGEST_INT))


# For each kind of list: the words of the message, and the conversion of an item.
_KINDS: dict[type, tuple[str, Callable[[float], float]]] = {
    Real: ("numbers", _to_float64),
    Integral: ("ints", _to_int64),
    bool: ("bools", bool),
}


def number_or_rows(name: str, value: object, kind: type, dtype: torch.dtype, like: Like) -> object:
    """Converts a tensor without dimensions to a number, and a list of numbers to a tensor."""
    if isinstance(value, Tensor):
        check_plain(name, value)
        if value.dim() or value.is_meta:
            return value
        return value.expand(like.rows) if checks.is_captured(value.device) else value.item()
    if not isinstance(value, (list, tuple)):
        return value
    words, within = _KINDS[kind]
    for item in value:
        if not isinstance(item, kind) or (isinstance(item, bool) and kind is not bool):
            raise TypeError(f"`{name}` must hold {words}, got {type(item).__name__}")
    return torch.tensor([within(item) for item in value], dtype=dtype, device=like.device)


def _per_row(name: str, given: Tensor, folded: Tensor, rule: NumberRule, like: Like) -> Tensor:
    checks.check_shape(name, given, "(rows,)", (like.rows,))
    checks.check_device(name, given, like.device, like.name)
    if checks.is_captured(like.device):
        return folded
    refused = (~rule.holds(folded)).nonzero()
    if len(refused) > 0:
        row = int(refused[0])
        raise ValueError(f"`{name}` must be {rule.range}, got {given[row].item()} in row {row}")
    return folded


def _to_float32(value: float) -> float:
    try:
        return float(struct.unpack("f", struct.pack("f", value))[0])
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def steps_of(name: str, value: object, like: Tensor) -> int | Tensor:
    """Returns the step of a call, an int or one per row, from an int, a tensor or a list."""
    if type(value) is int and 0 <= value < STEP_LIMIT:
        return value
    if isinstance(value, (list, tuple)):
        for item in value:
            check_step(name, item)
        return torch.tensor(value, dtype=torch.int64, device=like.device)
    if isinstance(value, Tensor):
        check_plain(name, value)
        if value.dim() or value.is_meta or value.dtype not in (torch.int64, torch.int32):
            return value
        value = value.item()
    check_step(name, value)
    return int(value)  # type: ignore[call-overload, no-any-return]


def check_step(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"`{name}` must be an int or a (rows,) int64 tensor, got {type(value).__name__}")
    if not 0 <= int(value) < STEP_LIMIT:
        raise ValueError(f"`{name}` must be in [0, 2**32), got {value}")
