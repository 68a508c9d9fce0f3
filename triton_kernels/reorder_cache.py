"""reorder_cache: rows of key and value tensors take over the last positions of other rows, in place.

The rows that move form trees: below a row that stays hang the rows that read it, below them the rows that read those.
Leaves are written first, so that every row is read before it is written; the top row's new value waits in registers. A
cycle is such a tree whose top is its lowest row. A program has one stripe of one head and one row. If the row is a top,
the program does the work of its whole tree: so programs share nothing, and need no order and no memory. The trees of a
beam search are single rows, one read and one write each.
"""

import triton
import triton.language as tl
from pygen.triton_kernels._specialization import Specialization, launch, signature_of
from torch import Tensor

_TILE = 512  # elements that are copied at once
_TILES = 16  # in a stripe
_ROWS = 256  # looked at together
_GROUP = 8  # tensors of a launch
_NUM_WARPS = 4
_REGISTERS = 96
_CONSTEXPRS: dict[str, object] = {"TILE": _TILE, "TILES": _TILES, "ROWS": _ROWS, "GROUP": _GROUP}
# What is moved: the widest of these, by bytes, that a layout allows.
_UNITS = {8: tl.int64, 4: tl.int32, 2: tl.int16, 1: tl.int8}


@triton.jit
def _source(beam_idx, starts, start, has_starts, length, row, mask):
    """The row that `row` reads, itself where it stays, and its first position that moves."""
    first = row * 0 + start
    if has_starts != 0:
        first += tl.load(starts + row, mask=mask, other=0)
    return tl.where(first < length, tl.load(beam_idx + row, mask=mask, other=0), row), first


@triton.jit
def _is_top(beam_idx, starts, start, has_starts, length, rows, row, source):
    """Whether a row moves, and is the top of its tree."""
    if source == row:
        return False
    above, _ = _source(beam_idx, starts, start, has_starts, length, source, True)
    if above == source:
        return True
    row_of_walk = source
    steps = row * 0
    while (row_of_walk > row) & (steps < rows):
        row_of_walk, _ = _source(beam_idx, starts, start, has_starts, length, row_of_walk, True)
        steps += 1
    return row_of_walk == row


@triton.jit
def _next_reader(beam_idx, starts, start, has_starts, length, rows, top, row, after, ROWS: tl.constexpr):
    """The lowest row above `after`, the top aside, that reads `row`; -1 if none does."""
    found = rows
    begin = after + 1
    while (begin < rows) & (found == rows):
        reader = begin + tl.arange(0, ROWS)
        mask = reader < rows
        source, _ = _source(beam_idx, starts, start, has_starts, length, reader, mask)
        found = tl.min(tl.where(mask & (source == row) & (reader != top), reader, rows))
        begin += ROWS
    return tl.where(found == rows, -1, found)


@triton.jit(
    do_not_specialize=[
        "start", "has_starts", "length", "has_span", "rows", "head_dim", "row_stride", "head_stride",
        "position_stride", "positions", "parts",
    ]
)  # fmt: skip
def reorder_cache_kernel(
    beam_idx, starts, tensors, start: tl.int64, has_starts: tl.int32, length: tl.int64, span, has_span: tl.int32,
    rows: tl.int64, head_dim: tl.int32, row_stride: tl.int64, head_stride: tl.int64, position_stride: tl.int64,
    positions: tl.int32, parts: tl.int64,
    TILE: tl.constexpr, TILES: tl.constexpr, ROWS: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """Grid (stripes x rows, heads, tensors). A tile holds `positions` positions of a head, or one of `parts` of one.

    tensors: GROUP pointers. A row moves from position start, or start + starts[row], on. span: (2,), an addition to
    that, and a limit of `length`.
    """
    data = tensors[0]
    tensor = tl.program_id(2)
    for i in tl.static_range(1, GROUP):
        if tensor == i:
            data = tensors[i]
    rows = rows.to(tl.int64)
    stripe = tl.program_id(0).to(tl.int64) // rows
    top = tl.program_id(0).to(tl.int64) % rows
    if has_span != 0:
        start += tl.load(span)
        length = tl.minimum(length, tl.load(span + 1))
    tiles = tl.cdiv(tl.maximum(length - start, 0), positions) * parts
    # The grid covers a span without a limit.
    if stripe * TILES >= tiles:
        return

    source, first = _source(beam_idx, starts, start, has_starts, length, top, True)
    if _is_top(beam_idx, starts, start, has_starts, length, rows, top, source):
        none = top * 0 - 1
        of_top = _next_reader(beam_idx, starts, start, has_starts, length, rows, top, top, none, ROWS)
        head = data + tl.program_id(1).to(tl.int64) * head_stride
        for tile in range(stripe * TILES, tl.minimum(stripe * TILES + TILES, tiles)):
            element = (tile % parts).to(tl.int32) * TILE + tl.arange(0, TILE)
            position = start + tile // parts * positions + element // head_dim
            inside = (element // head_dim < positions) & (position < length)
            at = head + position * position_stride + element % head_dim
            top_value = tl.load(at + source * row_stride, mask=inside & (position >= first))
            row = top
            reader = of_top
            after = none
            while row >= 0:
                if reader >= 0:
                    row = reader
                    after = none
                else:
                    # Every reader of the row has its value.
                    parent, first_moving = _source(beam_idx, starts, start, has_starts, length, row, True)
                    moves = inside & (position >= first_moving)
                    if row == top:
                        tl.store(at + top * row_stride, top_value, mask=moves)
                        row = none
                    else:
                        copied = tl.load(at + parent * row_stride, mask=moves)
                        tl.store(at + row * row_stride, copied, mask=moves)
                        tl.debug_barrier()
                        after = row
                        row = parent
                if row >= 0:
                    reader = _next_reader(beam_idx, starts, start, has_starts, length, rows, top, row, after, ROWS)


def reorder_cache(
    tensors: list[Tensor], beam_idx: Tensor, start: int | Tensor, length: int, span: Tensor | None = None
) -> None:
    """See `pygen.ops.reorder_cache`; arguments are checked there. One launch per 8 tensors of one layout."""
    of_layout: dict[tuple[int, tuple[int, ...]], list[object]] = {}
    for tensor in tensors:
        if tensor.numel() > 0:
            unit, layout = _in_units(tensor)
            of_layout.setdefault((unit, layout), []).append(triton.reinterpret(tensor, _UNITS[unit]))
    for (_, layout), alike in of_layout.items():
        for i in range(0, len(alike), _GROUP):
            _launch(alike[i : i + _GROUP], layout, beam_idx, start, length, span)


def _in_units(tensor: Tensor) -> tuple[int, tuple[int, ...]]:
    """Bytes of a unit; heads, and in units the head dimension and the strides of rows, heads and positions."""
    size = tensor.element_size()
    lengths = [tensor.shape[3] * size, *(stride * size for stride in tensor.stride()[:3])]
    unit = next(u for u in _UNITS if all(n % u == 0 for n in (tensor.data_ptr(), *lengths)))
    return unit, (tensor.shape[1], *(n // unit for n in lengths))


def _launch(
    tensors: list[object],
    layout: tuple[int, ...],
    beam_idx: Tensor,
    start: int | Tensor,
    length: int,
    span: Tensor | None,
) -> None:
    (heads, head_dim, *strides), rows = layout, beam_idx.shape[0]
    value, starts = (0, start) if isinstance(start, Tensor) else (start, beam_idx)
    positions, parts = max(1, _TILE // head_dim), triton.cdiv(head_dim, _TILE)
    tiles = triton.cdiv(length - value, positions) * parts
    if tiles == 0:
        return
    launch(
        reorder_cache_kernel, (triton.cdiv(tiles, _TILES) * rows, heads, len(tensors)),
        beam_idx, starts, (*tensors, *tensors[:1] * (_GROUP - len(tensors))),
        value, int(isinstance(start, Tensor)), length, beam_idx if span is None else span, int(span is not None), rows,
        head_dim, *strides, positions, parts,
        num_warps=_NUM_WARPS, max_registers=_REGISTERS, **_CONSTEXPRS,
    )  # fmt: skip


def specializations() -> list[Specialization]:
    listed = []
    for bytes_of_unit in _UNITS:
        types = {"beam_idx": "i64", "starts": "i64", "span": "i64", "tensors": (f"i{8 * bytes_of_unit}",) * _GROUP}
        signature = signature_of(reorder_cache_kernel, types)
        name = f"of {bytes_of_unit} bytes"
        listed.append(Specialization(name, reorder_cache_kernel, signature, _CONSTEXPRS, _NUM_WARPS, _REGISTERS))
    return listed
