"""The check vocabulary of all ops: every function raises in one sentence (name, rule, value) or returns the value
folded into the form that backends take."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

from pygen.ops._plain import check_plain
from pygen.rng import as_int64

FLOAT_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
LARGEST_INT = 2**63 - 1
_SMALLEST_FLOAT32 = 2.0**-149
SEED_LIMIT = 2**64
STEP_LIMIT = 2**32


@dataclass(frozen=True)
class Rule:
    """Allowed values of a knob: the words of the error message, and a test for a number or, elementwise, a tensor."""

    text: str
    holds: Callable[[Any], Any]


FINITE = Rule("finite", lambda value: (value > -math.inf) & (value < math.inf))
FINITE_NON_NEGATIVE = Rule("finite and >= 0", lambda value: (value >= 0) & (value < math.inf))
FINITE_POSITIVE = Rule("finite and > 0", lambda value: (value > 0) & (value < math.inf))
FRACTION = Rule("in [0, 1]", lambda value: (value >= 0) & (value <= 1))
POSITIVE_FRACTION = Rule("in (0, 1]", lambda value: (value > 0) & (value <= 1))
CUTOFF = Rule("in [0, 1)", lambda value: (value >= 0) & (value < 1))
NON_NEGATIVE = Rule(">= 0", lambda value: value >= 0)
POSITIVE = Rule(">= 1", lambda value: value >= 1)


@dataclass(frozen=True)
class Like:
    """What the other arguments of a call have to agree with."""

    rows: int
    vocab_size: int
    device: torch.device
    name: str = "logits"  # of the argument that says so


def check_logits(logits: Tensor) -> Like:
    check_tensor("logits", logits)
    if logits.dtype not in FLOAT_DTYPES:
        raise TypeError(f"`logits` must be float32, float16 or bfloat16, got {_dtype(logits)}")
    if logits.dim() != 2:
        raise ValueError(f"`logits` must have shape (rows, vocab_size), got {tuple(logits.shape)}")
    if logits.shape[1] == 0:
        raise ValueError(f"`logits` must have at least one column, got shape {tuple(logits.shape)}")
    check_last_stride("logits", logits)
    return Like(logits.shape[0], logits.shape[1], logits.device)


def check_tensor(name: str, value: object) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"`{name}` must be a torch.Tensor, got {type(value).__name__}")
    check_plain(name, value)


def check_dtype(name: str, value: Tensor, dtype: torch.dtype) -> None:
    if value.dtype is not dtype:
        raise TypeError(f"`{name}` must be {str(dtype).removeprefix('torch.')}, got {_dtype(value)}")


def check_shape(name: str, value: Tensor, words: str, shape: tuple[int, ...]) -> None:
    if tuple(value.shape) != shape:
        raise ValueError(f"`{name}` must have shape {words} = {shape}, got {tuple(value.shape)}")


def check_device(name: str, value: Tensor, device: torch.device, like: str = "logits") -> None:
    if value.device != device:
        raise ValueError(f"`{name}` must be on {device} like `{like}`, got {value.device}")


def check_last_stride(name: str, value: Tensor) -> None:
    if value.shape[-1] > 1 and value.stride(-1) != 1:
        raise ValueError(f"`{name}` must have a contiguous last dimension, got strides {value.stride()}")


def check_contiguous(name: str, value: Tensor) -> None:
    if not value.is_contiguous():
        raise ValueError(f"`{name}` must be contiguous, got strides {value.stride()} for shape {tuple(value.shape)}")


def check_output(name: str, value: object, dtype: torch.dtype, words: str, shape: tuple[int, ...], like: Like) -> None:
    """A contiguous tensor to write into."""
    check_tensor(name, value)
    assert isinstance(value, Tensor)
    check_dtype(name, value, dtype)
    check_shape(name, value, words, shape)
    check_device(name, value, like.device, like.name)
    check_contiguous(name, value)


def float_knob(name: str, value: object, rule: Rule, like: Like) -> float | Tensor:
    """A number, or one per row in a list or a floating (rows,) tensor, as float32: that is the value the rule is about.
    Tensors are copied; one without dimensions is a number."""
    value = number_or_rows(name, value, Real, torch.float64, like)
    if isinstance(value, Tensor):
        if not value.is_floating_point():
            raise TypeError(f"`{name}` must be a number or a floating point tensor, got a tensor of {_dtype(value)}")
        return _per_row(name, value, value.to(torch.float32, copy=True).contiguous(), rule, like)
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"`{name}` must be a number or a (rows,) tensor, got {type(value).__name__}")
    rounded = _to_float32(value)
    if not rule.holds(rounded):
        raise ValueError(f"`{name}` must be {rule.text}, got {value}")
    return rounded


def temperature_knob(value: object, rule: Rule, like: Like) -> float | Tensor:
    """As `float_knob`; a temperature that float32 rounds to 0 is no greedy one: it becomes the smallest there is."""
    value = number_or_rows("temperature", value, Real, torch.float64, like)
    if isinstance(value, Tensor):
        if value.is_floating_point() and value.dtype.itemsize > 4:
            value = torch.where((value > 0) & (value < _SMALLEST_FLOAT32), _SMALLEST_FLOAT32, value)
    elif isinstance(value, Real) and 0 < float(value) < _SMALLEST_FLOAT32:
        value = _SMALLEST_FLOAT32
    return float_knob("temperature", value, rule, like)


def int_knob(name: str, value: object, rule: Rule, like: Like) -> int | Tensor:
    """An int, or one per row in a list or a (rows,) int64 or int32 tensor, as int64. Tensors are copied; one without
    dimensions is an int."""
    value = number_or_rows(name, value, Integral, torch.int64, like)
    if isinstance(value, Tensor):
        if value.dtype not in (torch.int64, torch.int32):
            raise TypeError(f"`{name}` must be an int or an int64 tensor, got a tensor of {_dtype(value)}")
        return _per_row(name, value, value.to(torch.int64, copy=True).contiguous(), rule, like)
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"`{name}` must be an int or a (rows,) tensor, got {type(value).__name__}")
    if not rule.holds(value):
        raise ValueError(f"`{name}` must be {rule.text}, got {value}")
    return min(int(value), LARGEST_INT)


def count(name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"`{name}` must be an int, got {type(value).__name__}")
    if int(value) < 0:
        raise ValueError(f"`{name}` must be >= 0, got {value}")
    return int(value)


def count_up_to(name: str, value: object, last: int) -> int:
    if count(name, value) > last:
        raise ValueError(f"`{name}` must be in [0, {last}], got {value}")
    return int(value)  # type: ignore[call-overload, no-any-return]


def bool_knob(name: str, value: object, like: Like) -> bool | Tensor:
    """A bool, or one per row in a list or a (rows,) bool tensor, which is copied; one without dimensions is a bool."""
    value = number_or_rows(name, value, bool, torch.bool, like)
    if isinstance(value, Tensor):
        check_dtype(name, value, torch.bool)
        check_shape(name, value, "(rows,)", (like.rows,))
        check_device(name, value, like.device, like.name)
        return value.clone()
    if not isinstance(value, bool):
        raise TypeError(f"`{name}` must be a bool or a (rows,) bool tensor, got {type(value).__name__}")
    return value


def row_table(name: str, value: object, dtype: torch.dtype, words: str, width: int | None, like: Like) -> Tensor:
    """A table shared by all rows, (width,) or (1, width), or one row of it each, (rows, width), read in place at every
    call.

    width None: any.
    """
    check_tensor(name, value)
    assert isinstance(value, Tensor)
    check_dtype(name, value, dtype)
    shape = tuple(value.shape)
    own_width = shape[-1] if width is None and shape else width
    if shape not in ((own_width,), (1, own_width), (like.rows, own_width)):
        wanted = f"with {like.rows} rows" if width is None else f"= {(like.rows, width)}"
        raise ValueError(f"`{name}` must have shape ({words},) or (rows, {words}) {wanted}, got {shape}")
    check_device(name, value, like.device, like.name)
    check_last_stride(name, value)
    return value[0] if shape == (1, own_width) else value


def check_ids(name: str, value: object) -> None:
    check_tensor(name, value)
    assert isinstance(value, Tensor)
    if value.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"`{name}` must be int64 or int32, got {_dtype(value)}")


def id_table(name: str, value: object, like: Like) -> Tensor:
    """Token ids for all rows, from a sequence of ints or (n,) or (1, n), or for each row, (rows, n): int64 or int32, as
    they are."""
    if isinstance(value, Tensor):
        check_ids(name, value)
        return row_table(name, value, value.dtype, "n", None, like)
    ids = [count_id for count_id in _ints(name, value) if 0 <= count_id < like.vocab_size]
    return torch.tensor(ids, dtype=torch.int64, device=like.device)


def seed_words(name: str, value: object, like: Like) -> Tensor:
    """Row seeds: (rows,) int64 of bit patterns, from such a tensor (copied) or from one int per row."""
    if isinstance(value, Tensor):
        check_dtype(name, value, torch.int64)
        check_shape(name, value, "(rows,)", (like.rows,))
        check_device(name, value, like.device, like.name)
        return value.clone().contiguous()
    words = _ints(name, value)
    for word in words:
        check_seed(name, word)
    if len(words) != like.rows:
        raise ValueError(f"`{name}` must be an int or hold one int per row, {like.rows}, got {len(words)}")
    return torch.tensor([as_int64(word) for word in words], dtype=torch.int64, device=like.device)


def check_seed(name: str, value: int) -> None:
    if not 0 <= value < SEED_LIMIT:
        raise ValueError(f"`{name}` must be in [0, 2**64), got {value}")


def _to_float64(value: Any) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def _to_int64(value: Any) -> int:
    return max(-LARGEST_INT, min(int(value), LARGEST_INT))


# What a list may hold: the words of the message, and the value that a tensor takes.
_KINDS: dict[type, tuple[str, Callable[[Any], Any]]] = {
    Real: ("numbers", _to_float64),
    Integral: ("ints", _to_int64),
    bool: ("bools", bool),
}


def number_or_rows(name: str, value: object, kind: type, dtype: torch.dtype, like: Like) -> object:
    """`value` with a tensor without dimensions as its number, and a list of numbers as a tensor."""
    if isinstance(value, Tensor):
        check_plain(name, value)
        return value if value.dim() or value.is_meta else value.item()
    if not isinstance(value, (list, tuple)):
        return value
    words, within = _KINDS[kind]
    for item in value:
        if not isinstance(item, kind) or (isinstance(item, bool) and kind is not bool):
            raise TypeError(f"`{name}` must hold {words}, got {type(item).__name__}")
    return torch.tensor([within(item) for item in value], dtype=dtype, device=like.device)


def _ints(name: str, value: object) -> list[int]:
    if not isinstance(value, Sequence) or isinstance(value, (str, bytes)):
        raise TypeError(f"`{name}` must be a sequence of ints or an int64 tensor, got {type(value).__name__}")
    if set(map(type, value)) <= {int}:  # lists may be long
        return list(value)
    for item in value:
        if isinstance(item, bool) or not isinstance(item, Integral):
            raise TypeError(f"`{name}` must hold ints, got {type(item).__name__}")
    return [int(item) for item in value]


def _per_row(name: str, given: Tensor, folded: Tensor, rule: Rule, like: Like) -> Tensor:
    check_shape(name, given, "(rows,)", (like.rows,))
    check_device(name, given, like.device, like.name)
    refused = (~rule.holds(folded)).nonzero()
    if len(refused) > 0:
        row = int(refused[0])
        raise ValueError(f"`{name}` must be {rule.text}, got {given[row].item()} in row {row}")
    return folded


def _to_float32(value: Any) -> float:
    try:
        return float(struct.unpack("f", struct.pack("f", value))[0])
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def _dtype(value: Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")


def check_rows_apart(name: str, value: Tensor) -> None:
    """Refuses a table to write into whose rows share elements."""
    if value.shape[0] > 1 and value.stride(0) < value.shape[1]:
        strides, shape = value.stride(), tuple(value.shape)
        raise ValueError(f"`{name}` must have rows apart, got strides {strides} for shape {shape}")


def check_no_overlap(name: str, value: Tensor, other_name: str, other: Tensor) -> None:
    """Refuses two tensors whose elements lie between the same first and last byte."""
    first, last = _byte_range(value)
    other_first, other_last = _byte_range(other)
    if first < other_last and other_first < last:
        raise ValueError(f"`{name}` must share no memory with `{other_name}`, got overlapping tensors")


def _byte_range(value: Tensor) -> tuple[int, int]:
    if value.numel() == 0:
        return value.data_ptr(), value.data_ptr()
    extent = sum((size - 1) * stride for size, stride in zip(value.shape, value.stride(), strict=True)) + 1
    return value.data_ptr(), value.data_ptr() + extent * value.element_size()


def steps_of(name: str, value: object, like: Tensor) -> int | Tensor:
    """The step of a call: an int, also from a tensor without dimensions, or one per row, also from a list."""
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
