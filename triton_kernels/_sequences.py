"""The sequences that draws extend."""

from typing import Any, NamedTuple

import triton
import triton.language as tl


class Sequences(NamedTuple):
    """The tensors of a DecodeState, as a kernel takes them; pointers."""

    token_ids: Any  # (rows, columns) int64
    history: Any  # (rows, columns) int64, what the penalties read
    finished: Any  # (rows,) uint8
    num_generated: Any  # (rows,) int64
    unfinished: Any  # (1,) int64: the number of rows that go on
    eos_token_ids: Any  # (eos_count,) int64
    ticket: Any  # (1,) int64, zero between launches


SEQUENCES_TYPES = Sequences("i64", "i64", "u8", "i64", "i64", "i64", "i64")


@triton.jit
def extend_sequence(
    token, row, sequences, token_ids_stride, history_stride, eos_count, pad_token_id, column, steps, counts_steps
):
    """Appends the token, or the pad token to a finished row; returns the one it appended.

    The token goes to `column`. Where `counts_steps`, steps[row] says how many columns further, and grows by 1.

    The last row counts: the upper half of `ticket` holds how many rows have come, the lower half how many go on.
    """
    was_finished = tl.load(sequences.finished + row) != 0
    token = tl.where(was_finished, pad_token_id, token)
    ends = was_finished
    for i in range(eos_count):
        ends = ends | (token == tl.load(sequences.eos_token_ids + i))
    if was_finished == 0:
        num_generated = sequences.num_generated + row
        tl.store(num_generated, tl.load(num_generated) + 1)
        tl.store(sequences.finished + row, ends.to(tl.uint8))
    if counts_steps:
        step = tl.load(steps + row)
        tl.store(steps + row, step + 1)
        column += step
    tl.store(sequences.token_ids + row * token_ids_stride + column, token)
    tl.store(sequences.history + row * history_stride + column, token)
    mine = tl.where(ends, 0, 1).to(tl.int64)
    before = tl.atomic_add(sequences.ticket, mine + (1 << 32))
    if (before >> 32) == tl.num_programs(0) - 1:
        tl.store(sequences.unfinished, (before & 0xFFFFFFFF) + mine)
        tl.store(sequences.ticket, mine * 0)
    return token
