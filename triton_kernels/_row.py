"""What a program knows of its row: its scores, its noise and its knobs.

Kernels take pointers in NamedTuples, and scalars as parameters. Whatever `do_not_specialize` says, Triton compiles a
kernel anew for an integer in a tuple that is 1 or a multiple of 16. Functions take both in NamedTuples.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl
from pygen.triton_kernels._knobs import (
    COUNTED,
    FLAGS,
    FLOAT_KNOBS,
    MARKED,
    NUM_FLOAT_KNOBS,
    NUM_INT_KNOBS,
)
from pygen.triton_kernels._philox import Noise
from pygen.triton_kernels._scores import Scores, mark_tokens

TEMPERATURE = tl.constexpr(FLOAT_KNOBS.index("temperature"))
REPETITION_PENALTY = tl.constexpr(FLOAT_KNOBS.index("repetition_penalty"))
PRESENCE_PENALTY = tl.constexpr(FLOAT_KNOBS.index("presence_penalty"))
FREQUENCY_PENALTY = tl.constexpr(FLOAT_KNOBS.index("frequency_penalty"))

# Bits of `modes`, above those of the tables that are given.
NOISE_IS_GIVEN = tl.constexpr(16)
STEPS_ARE_GIVEN = tl.constexpr(32)
STORES = tl.constexpr(64)  # the scan writes the scores it sees
EXTENDS = tl.constexpr(128)  # the draws extend sequences
HISTORY_GROWS = tl.constexpr(256)  # by the steps of the row, which an extension of its sequence counts

# From here on the programs of a row take longer to read its history each than to wait for one of them.
LONG_HISTORY = tl.constexpr(4096)
_IS_MARKED = tl.constexpr(2**16)  # above the number of programs


class RowTables(NamedTuple):
    """The tables of all rows, as a kernel takes them; pointers."""

    knobs: Any  # (rows, NUM_FLOAT_KNOBS) float32
    int_knobs: Any  # (rows, NUM_INT_KNOBS) int32
    history: Any  # (rows, length) int64
    bias: Any  # (vocab_size,) or (rows, vocab_size) float32
    suppress: Any  # (suppress_count,) or (rows, suppress_count) int64
    bitmask: Any  # (ceil(vocab_size / 32),) or (rows, ceil(vocab_size / 32)) int32
    noise: Any  # (rows, vocab_size) float32
    seeds: Any  # (rows,) int64
    steps: Any  # (rows,) int64


ROW_TABLES_TYPES = RowTables("fp32", "i32", "i64", "fp32", "i64", "i32", "fp32", "i64", "i64")


class Numbers(NamedTuple):
    """The scalars that kernels take beside `RowTables`; strides are those of rows, 0 where rows share a table."""

    logits_stride: Any
    vocab_size: Any
    history_stride: Any
    length: Any  # of the histories
    bias_stride: Any
    suppress_stride: Any
    suppress_count: Any
    bitmask_stride: Any
    modes: Any
    noise_stride: Any
    step: Any
    f32_stride: Any
    i32_stride: Any
    scores_stride: Any


@triton.jit
def row_flags(tables, row):
    return tl.load(tables.int_knobs + row * NUM_INT_KNOBS + FLAGS)


@triton.jit
def row_scores(logits, tables, workspace, work, numbers, row, flags, is_stored):
    """The `Scores` of a row; work: its workspace. is_stored: whether `workspace.scores` hold them already."""
    knobs = tables.knobs + row * NUM_FLOAT_KNOBS
    return Scores(
        logits=logits + row * numbers.logits_stride,
        bias=tables.bias + row * numbers.bias_stride,
        bitmask=tables.bitmask + row * numbers.bitmask_stride,
        seen=work.seen,
        banned=work.banned,
        counts=work.counts,
        modes=numbers.modes,
        is_marked=(flags & MARKED) != 0,
        is_counted=(flags & COUNTED) != 0,
        repetition_penalty=tl.load(knobs + REPETITION_PENALTY),
        presence_penalty=tl.load(knobs + PRESENCE_PENALTY),
        frequency_penalty=tl.load(knobs + FREQUENCY_PENALTY),
        stored=workspace.scores + row * numbers.scores_stride,
        is_stored=is_stored,
    )


@triton.jit
def row_noise(tables, numbers, row, step):
    return Noise(
        given=tables.noise + row * numbers.noise_stride,
        is_given=(numbers.modes & NOISE_IS_GIVEN) != 0,
        seed=tl.load(tables.seeds + row),
        step=step,
    )


@triton.jit
def row_step(tables, numbers, row):
    """The step that the noise of a row goes by."""
    step = numbers.step
    if (numbers.modes & STEPS_ARE_GIVEN) != 0:
        step = tl.load(tables.steps + row).to(tl.int32)
    return step


@triton.jit
def mark_row(tables, workspace, work, numbers, row, flags, begin, end, length):
    """Marks a row whose history has `length` tokens, as far as the program that owns the tokens [begin, end) reads it.

    Every program of the row marks its own tokens, for which it reads the whole history. A long one is read once: the
    first program to come marks the whole row, and the others wait. It runs already, so that they cannot wait forever.
    """
    shares = (length >= LONG_HISTORY) & (tl.num_programs(1) > 1)
    progress = workspace.marks + row
    came = length * 0
    if shares:
        came = tl.atomic_add(progress, 1, sem="relaxed")
    if came == 0:
        mark_tokens(
            work.seen, work.banned, work.counts, tl.where(shares, 0, begin), tl.where(shares, numbers.vocab_size, end),
            numbers.vocab_size, flags, tables.int_knobs + row * NUM_INT_KNOBS,
            tables.history + row * numbers.history_stride, length,
            tables.suppress + row * numbers.suppress_stride, numbers.suppress_count, numbers.modes,
        )  # fmt: skip
    if shares:
        if came == 0:
            tl.atomic_add(progress, _IS_MARKED, sem="release")
        while came > 0:
            came = tl.where(tl.atomic_add(progress, 0, sem="acquire") >= _IS_MARKED, 0, 1)
        tl.debug_barrier()
