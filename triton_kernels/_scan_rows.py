"""The launch that scans all rows, each split over programs."""

import triton
import triton.language as tl
from pygen.triton_kernels._knobs import MARKED, NUCLEUS, NUM_FLOAT_KNOBS, RACES
from pygen.triton_kernels._row import (
    HISTORY_GROWS,
    STORES,
    TEMPERATURE,
    Numbers,
    RowTables,
    mark_row,
    row_flags,
    row_noise,
    row_scores,
    row_step,
)
from pygen.triton_kernels._scan import SCAN_TILE, scan
from pygen.triton_kernels._workspace import Workspace, row_workspace
from triton.language.extra.cuda import gdc_launch_dependents

SCAN_WARPS = 8


@triton.jit
def scan_part(row, part, begin, end, logits, tables, workspace, numbers):
    """Marks and scans the tokens [begin, end) of a row."""
    flags = row_flags(tables, row)
    work = row_workspace(workspace.f32, numbers.f32_stride, workspace.i32, numbers.i32_stride, row, numbers.vocab_size)
    scores = row_scores(logits, tables, workspace, work, numbers, row, flags, False)
    length = numbers.length
    if (numbers.modes & HISTORY_GROWS) != 0:
        length += tl.load(tables.steps + row).to(tl.int32)
    if (flags & MARKED) != 0:
        mark_row(tables, workspace, work, numbers, row, flags, begin, end, length)
    scan(
        scores, work, row_noise(tables, numbers, row, row_step(tables, numbers, row)),
        begin, end, numbers.vocab_size, part, tl.load(tables.knobs + row * NUM_FLOAT_KNOBS + TEMPERATURE),
        (flags & NUCLEUS) != 0, (flags & RACES) != 0, (numbers.modes & STORES) != 0,
    )  # fmt: skip


@triton.jit(
    do_not_specialize=[
        "logits_stride", "vocab_size", "history_stride", "length", "bias_stride", "suppress_stride", "suppress_count",
        "bitmask_stride", "modes", "noise_stride", "step", "f32_stride", "i32_stride", "scores_stride", "tokens",
    ]
)  # fmt: skip
def scan_rows_kernel(
    logits, tables: RowTables, workspace: Workspace,
    logits_stride: tl.int64, vocab_size: tl.int32, history_stride: tl.int64, length: tl.int32, bias_stride: tl.int64,
    suppress_stride: tl.int64, suppress_count: tl.int32, bitmask_stride: tl.int64, modes: tl.int32,
    noise_stride: tl.int64, step: tl.int32, f32_stride: tl.int64, i32_stride: tl.int64, scores_stride: tl.int64,
    tokens: tl.int32, ALIGNED: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Grid (rows, parts): program (row, part) scans `tokens` tokens, a multiple of SCAN_TILE."""
    if PDL:
        gdc_launch_dependents()
    row = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    if ALIGNED:
        logits_stride = tl.multiple_of(logits_stride, 8)
    numbers = Numbers(
        logits_stride, vocab_size, history_stride, length, bias_stride, suppress_stride, suppress_count,
        bitmask_stride, modes, noise_stride, step, f32_stride, i32_stride, scores_stride,
    )  # fmt: skip
    begin = tl.multiple_of(part * tokens, SCAN_TILE)
    scan_part(row, part, begin, tl.minimum(begin + tokens, vocab_size), logits, tables, workspace, numbers)
