"""The checks of tensors that all ops share.

Every function raises an error of one sentence (name, rule, value), or returns the value in the form that backends take.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral

import torch
from torch import Tensor

from pygen.ops._plain import check_plain

FLOAT_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Like:
    """The shape and device with which the other arguments of a call must agree."""

    rows: int
    vocab_size: int
    device: torch.device
    name: str = "logits"  # of the argument that determines them


def check_logits(logits: Tensor) -> Like:
    check_tensor("logits", logits)
    if logits.dtype not in FLOAT_DTYPES:
        raise TypeError(f"`logits` must be float32, float16 or bfloat16, got {dtype_name(logits)}")
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


def is_captured(device: torch.device) -> bool:
    """Returns whether a CUDA graph captures this call. Then the host can read no element of a tensor to check it."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def check_dtype(name: str, value: Tensor, dtype: torch.dtype) -> None:
    if value.dtype is not dtype:
        raise TypeError(f"`{name}` must be {str(dtype).removeprefix('torch.')}, got {dtype_name(value)}")


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
    """Checks a contiguous tensor to write into."""
    check_tensor(name, value)
    assert isinstance(value, Tensor)
    check_dtype(name, value, dtype)
    check_shape(name, value, words, shape)
    check_device(name, value, like.device, like.name)
    check_contiguous(name, value)


def count(name: str, value: object, least: int = 0) -> int:
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"`{name}` must be an int, got {type(value).__name__}")
    if int(value) < least:
        raise ValueError(f"`{name}` must be >= {least}, got {value}")
    return int(value)


def count_up_to(name: str, value: object, last: int) -> int:
    if count(name, value) > last:
        raise ValueError(f"`{name}` must be in [0, {last}], got {value}")
    return int(value)  # type: ignore[call-overload, no-any-return]


def row_table(name: str, value: object, dtype: torch.dtype, words: str, width: int | None, like: Like) -> Tensor:
    """Checks a table for all rows, (width,) or (1, width), or for each row, (rows, width). Calls read it in place.

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
        raise TypeError(f"`{name}` must be int64 or int32, got {dtype_name(value)}")


def id_table(name: str, value: object, like: Like) -> Tensor:
    """Checks token ids, int64 or int32: for all rows, a sequence of ints, (n,) or (1, n); for each row, (rows, n)."""
    if isinstance(value, Tensor):
        check_ids(name, value)
        return row_table(name, value, value.dtype, "n", None, like)
    ids = [count_id for count_id in int_list(name, value) if 0 <= count_id < like.vocab_size]
    return torch.tensor(ids, dtype=torch.int64, device=like.device)


def dtype_name(value: Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")


def int_list(name: str, value: object) -> list[int]:
    if not isinstance(value, Sequence) or isinstance(value, (str, bytes)):
        raise TypeError(f"`{name}` must be a sequence of ints or an int64 tensor, got {type(value).__name__}")
    if set(map(type, value)) <= {int}:  # lists may be long
        return list(value)
    for item in value:
        if isinstance(item, bool) or not isinstance(item, Integral):
            raise TypeError(f"`{name}` must hold ints, got {type(item).__name__}")
    return [int(item) for item in value]


def check_rows_apart(name: str, value: Tensor) -> None:
    """Refuses a table to write into if its rows share elements."""
    if value.shape[0] > 1 and value.stride(0) < value.shape[1]:
        strides, shape = value.stride(), tuple(value.shape)
        raise ValueError(f"`{name}` must have rows that share no memory, got strides {strides} for shape {shape}")


def check_no_overlap(name: str, value: Tensor, other_name: str, other: Tensor) -> None:
    """Refuses two tensors whose address ranges overlap."""
    first, last = _byte_range(value)
    other_first, other_last = _byte_range(other)
    if first < other_last and other_first < last:
        raise ValueError(f"`{name}` must share no memory with `{other_name}`, got overlapping tensors")


def _byte_range(value: Tensor) -> tuple[int, int]:
    if value.numel() == 0:
        return value.data_ptr(), value.data_ptr()
    extent = sum((size - 1) * stride for size, stride in zip(value.shape, value.stride(), strict=True)) + 1
    return value.data_ptr(), value.data_ptr() + extent * value.element_size()
