"""Moves the beams' histories between the rows of a key-value cache, in place."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pygen.backends import Dispatcher
from pygen.ops import _checks as checks
from pygen.ops import _cuda as cuda
from pygen.ops import _traced as traced
from pygen.ops._traced import is_tracing


def reorder_cache(
    cache_tensors: Tensor | Sequence[Tensor],
    beam_idx: Tensor,
    start: int | Tensor = 0,
    length: int | None = None,
    *,
    backend: str = "auto",
) -> None:
    """Copies positions [start, length) of row `beam_idx[r]` into row r of every tensor, in place.

    All rows of a tensor t move at once, so that swaps and cycles are correct::

        before = t.clone()
        for r in range(rows):
            t[r, :, start_r:length] = before[beam_idx[r], :, start_r:length]

    The op writes nothing else, and nothing in rows with beam_idx[r] == r. In the usual step of a beam search, rows of
    dead beams receive copies of living ones. That costs one read and one write of the positions that move. A cycle of
    rows costs one more row.

    Arguments:
        cache_tensors: a tensor, or several: (rows, heads, positions, head_dim) of any dtype, last dimension contiguous,
            other strides free as long as no two elements share memory. Tensors need equal rows only.
        beam_idx: (rows,) int64 or int32, in [0, rows).
        start: in [0, length], an int or (rows,) int64 or int32. Both rows are equal before it, for example in the
            prompt.
        length: positions in use. The default is all positions, if all tensors have equally many.
        backend: "auto", "cpu", "cuda", "triton" or "torch".

    Raises TypeError for types and dtypes, ValueError for values and shapes, BackendError if the backend cannot run. A
    refused call changes nothing.
    """
    if is_tracing():
        traced.reorder_cache(cache_tensors, beam_idx, start, length, backend)
        return
    tensors = _check_tensors(cache_tensors)
    rows, device = tensors[0].shape[0], tensors[0].device
    limit = _check_length(length, tensors)
    _check_rows("beam_idx", beam_idx, rows, device)
    beam_idx = _in_range("beam_idx", beam_idx, f"in [0, {rows})", 0, rows - 1)
    if isinstance(start, Tensor):
        _check_rows("start", start, rows, device)
        start = _in_range("start", start, f"in [0, {limit}]", 0, limit).long().contiguous()
    else:
        start = checks.count("start", start)
        if start > limit:
            raise ValueError(f"`start` must be in [0, {limit}], got {start}")
    _, entry = _dispatch.resolve(device, backend)
    if rows > 0:
        entry(tensors, beam_idx.long().contiguous(), start, limit, None)


def reorder_cache_unchecked(
    tensors: list[Tensor],
    beam_idx: Tensor,
    start: int | Tensor,
    length: int,
    span: Tensor | None = None,
    *,
    backend: str = "auto",
) -> None:
    """`reorder_cache` without checks: the host reads no value of a tensor, so that a CUDA graph can capture the call.

    span: (2,) int64 on the device of the tensors, or None. If given, row r copies positions
        [span[0] + start_r, min(span[1], length)).
    """
    _, entry = _dispatch.resolve(tensors[0].device, backend)
    entry(tensors, beam_idx, start, length, span)


def _check_tensors(cache_tensors: object) -> list[Tensor]:
    if isinstance(cache_tensors, Tensor):
        tensors, name = [cache_tensors], "cache_tensors"
    elif isinstance(cache_tensors, Sequence) and not isinstance(cache_tensors, (str, bytes)):
        tensors, name = list(cache_tensors), "cache_tensors[{}]"
    else:
        kind = type(cache_tensors).__name__
        raise TypeError(f"`cache_tensors` must be a tensor or a sequence of tensors, got {kind}")
    if not tensors:
        raise ValueError("`cache_tensors` must hold at least one tensor, got none")
    # Most layers of a model have equal layouts, so a layout is checked only if it differs from the one before.
    checked: object = None
    for i, tensor in enumerate(tensors):
        checks.check_tensor(name.format(i), tensor)
        if (tensor.shape, tensor.stride(), tensor.device) != checked:
            _check_tensor(name.format(i), tensor, tensors[0])
            checked = (tensor.shape, tensor.stride(), tensor.device)
    addresses = {tensor.data_ptr() for tensor in tensors}
    if len(addresses) < len(tensors):
        _check_none_twice(tensors)
    return tensors


def _check_none_twice(tensors: list[Tensor]) -> None:
    addresses = [tensor.data_ptr() for tensor in tensors if tensor.numel() > 0 and not tensor.is_meta]
    if len(set(addresses)) < len(addresses):
        raise ValueError("`cache_tensors` must not hold a tensor twice, got equal pointers")


def _check_tensor(name: str, tensor: Tensor, first: Tensor) -> None:
    if tensor.dim() != 4:
        raise ValueError(f"`{name}` must have shape (rows, heads, positions, head_dim), got {tuple(tensor.shape)}")
    if tensor.shape[0] != first.shape[0]:
        raise ValueError(f"`{name}` must have {first.shape[0]} rows like `cache_tensors[0]`, got {tensor.shape[0]}")
    checks.check_device(name, tensor, first.device, "cache_tensors[0]")
    checks.check_last_stride(name, tensor)
    reach = 0
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1:
            if stride <= reach:
                strides, shape = tensor.stride(), tuple(tensor.shape)
                raise ValueError(
                    f"`{name}` must have elements that share no memory, got strides {strides} for shape {shape}"
                )
            reach += (size - 1) * stride


def _check_length(length: object, tensors: list[Tensor]) -> int:
    positions = sorted({tensor.shape[2] for tensor in tensors})
    if length is not None:
        limit = checks.count("length", length)
        if limit > positions[0]:
            raise ValueError(f"`length` must be in [0, {positions[0]}], got {limit}")
        return limit
    if len(positions) > 1:
        raise ValueError(f"`length` must be given where `cache_tensors` differ in positions, got {positions}")
    return positions[0]


def _check_rows(name: str, value: object, rows: int, device: torch.device) -> None:
    checks.check_tensor(name, value)
    assert isinstance(value, Tensor)
    checks.check_ids(name, value)
    checks.check_shape(name, value, "(rows,)", (rows,))
    checks.check_device(name, value, device, "cache_tensors")


def _in_range(name: str, value: Tensor, words: str, low: int, high: int) -> Tensor:
    """Checks the values; those that the host cannot read are clamped."""
    if checks.is_captured(value.device):
        return value.clamp(low, high)
    for row in ((value < low) | (value > high)).nonzero()[:1].flatten().tolist():
        raise ValueError(f"`{name}` must be {words}, got {int(value[row])} in row {row}")
    return value


def _cpu(tensors: list[Tensor], beam_idx: Tensor, start: int | Tensor, length: int, span: Tensor | None) -> None:
    from pygen import _C

    _C.reorder_cache(*_arguments(tensors, beam_idx, start, span), length, torch.get_num_threads())


def _cuda(tensors: list[Tensor], beam_idx: Tensor, start: int | Tensor, length: int, span: Tensor | None) -> None:
    with cuda.on(beam_idx.device) as (ordinal, stream):
        cuda.kernels().launch_reorder_cache(ordinal, stream, *_arguments(tensors, beam_idx, start, span), length)


def _arguments(
    tensors: list[Tensor], beam_idx: Tensor, start: int | Tensor, span: Tensor | None
) -> tuple[list[tuple[int, ...]], int, int, int, int, int]:
    layouts = [(t.data_ptr(), t.shape[1], t.shape[3], t.element_size(), *t.stride()[:3]) for t in tensors]
    value, address = (0, start.data_ptr()) if isinstance(start, Tensor) else (start, 0)
    return layouts, beam_idx.shape[0], beam_idx.data_ptr(), value, address, 0 if span is None else span.data_ptr()


def _triton(tensors: list[Tensor], beam_idx: Tensor, start: int | Tensor, length: int, span: Tensor | None) -> None:
    from pygen.triton_kernels.reorder_cache import reorder_cache as kernel

    kernel(tensors, beam_idx, start, length, span)


def _torch(tensors: list[Tensor], beam_idx: Tensor, start: int | Tensor, length: int, span: Tensor | None) -> None:
    from pygen.reference.reorder_cache import reorder_cache as reference

    with torch.no_grad():
        reference(tensors, beam_idx, start, length, span)


_dispatch: Dispatcher[Callable[[list[Tensor], Tensor, int | Tensor, int, Tensor | None], None]] = Dispatcher(
    "reorder_cache", cpu=_cpu, cuda=_cuda, triton=_triton, torch=_torch
)
