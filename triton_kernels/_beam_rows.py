"""Which rows hold the beams of a prompt after a step, and what rows take over from each other."""

import triton
import triton.language as tl
from pygen.triton_kernels._scan import LARGE_ID
from pygen.triton_kernels._select import LANES

COLUMNS = tl.constexpr(128)  # tokens of a sequence copied together


@triton.jit
def find_rows(slots, shared, first, num_beams, step, parents, wanted, rows, free, sources, common):
    """A row for every beam, counted within the prompt, and the row it takes its tokens from.

    The first child of a beam stays in its row. Every other child takes a row whose beam left no child: the one with the
    longest history in common with its parent's row, the lowest of several.

    Writes `rows`, `sources` and `common`, the length that a row and its source have in common. wanted, free: scratch.
    All are (num_beams,) int64, as are `parents`.
    """
    for start in range(0, num_beams, LANES):
        at = start + tl.arange(0, LANES)
        inside = at < num_beams
        parent = tl.load(parents + at, mask=inside, other=0)
        tl.store(wanted + at, tl.load(slots + parent, mask=inside, other=0) - first, mask=inside)
        tl.store(sources + at, at.to(tl.int64), mask=inside)
        tl.store(common + at, tl.zeros((LANES,), tl.int64) + step, mask=inside)
    tl.debug_barrier()
    for start in range(0, num_beams, LANES):
        at = start + tl.arange(0, LANES)
        row = tl.load(wanted + at, mask=at < num_beams, other=-1)
        taken = tl.zeros((LANES,), tl.int32)
        in_use = tl.zeros((LANES,), tl.int32)
        for other_start in range(0, num_beams, LANES):
            other = other_start + tl.arange(0, LANES)
            other_row = tl.load(wanted + other, mask=other < num_beams, other=-2)
            earlier = (other_row[None, :] == row[:, None]) & (other[None, :] < at[:, None])
            taken = tl.maximum(taken, tl.max(earlier.to(tl.int32), axis=1))
            in_use = tl.maximum(in_use, tl.max((other_row[None, :] == at[:, None]).to(tl.int32), axis=1))
        tl.store(rows + at, tl.where(taken != 0, -1, row), mask=at < num_beams)
        tl.store(free + at, (1 - in_use).to(tl.int64), mask=at < num_beams)
    tl.debug_barrier()
    for beam in range(num_beams):
        if tl.load(rows + beam) < 0:
            source = tl.load(wanted + beam)
            longest = step.to(tl.int32) * 0 - 1
            target = num_beams * 0
            for start in range(0, num_beams, LANES):
                at = start + tl.arange(0, LANES)
                is_free = tl.load(free + at, mask=at < num_beams, other=0) != 0
                length = tl.load(shared + source * num_beams + at, mask=is_free, other=-1)
                if tl.max(length) > longest:
                    longest = tl.max(length)
                    target = tl.min(tl.where(length == longest, at, LARGE_ID))
            # Every thread has read before one writes.
            tl.debug_barrier()
            tl.store(free + target, tl.zeros((), tl.int64))
            tl.store(rows + beam, target.to(tl.int64))
            tl.store(sources + target, source)
            tl.store(common + target, longest.to(tl.int64))
            tl.debug_barrier()


@triton.jit
def share_histories(shared, num_beams, step, sources):
    """Updates the lengths that rows have in common, once every row has taken over its source's history."""
    for start in range(0, num_beams, LANES):
        at = start + tl.arange(0, LANES)
        source = tl.load(sources + at, mask=at < num_beams, other=0)
        for other_start in range(0, num_beams, LANES):
            other = other_start + tl.arange(0, LANES)
            other_source = tl.load(sources + other, mask=other < num_beams, other=0)
            # Reads are of pairs of rows that stay, writes are of pairs with one that moves.
            moves = (source != at)[:, None] | (other_source != other)[None, :]
            moves = moves & (at < num_beams)[:, None] & (other < num_beams)[None, :]
            before = tl.load(shared + source[:, None] * num_beams + other_source[None, :], mask=moves, other=0)
            after = tl.where(source[:, None] == other_source[None, :], step.to(tl.int32), before)
            after = tl.where(at[:, None] == other[None, :], 0, after)
            tl.store(shared + at.to(tl.int64)[:, None] * num_beams + other[None, :], after, mask=moves)


@triton.jit
def copy_histories(table, stride, num_beams, step, sources, common):
    """Copies the generated tokens that rows lack. table: that of the prompt, from its first generated column on."""
    for row in range(num_beams):
        source = tl.load(sources + row)
        if source != row:
            for start in range(tl.load(common + row), step, COLUMNS):
                column = start + tl.arange(0, COLUMNS)
                token = tl.load(table + source * stride + column, mask=column < step, other=0)
                tl.store(table + row * stride + column, token, mask=column < step)


@triton.jit
def stay(fed, fed_stride, first, num_beams, step, token_ids, source_rows, shared, status):
    """Writes the outputs where every row stays, and feeds the token of the column `fed` again."""
    for start in range(0, num_beams, LANES):
        at = start + tl.arange(0, LANES)
        inside = at < num_beams
        row = first + at
        tl.store(token_ids + row, tl.load(fed + row * fed_stride, mask=inside, other=0), mask=inside)
        tl.store(source_rows + row, row, mask=inside)
        tl.store(shared + row, tl.zeros((LANES,), tl.int64) + step, mask=inside)
        tl.store(status + row, tl.zeros((LANES,), tl.int32), mask=inside)
