"""Rows of a call: where a row finds its knobs, its tables and its workspace, and the launch that scans them all."""

import triton
import triton.language as tl
from pygen.triton_kernels._filters import TOP_H_ROOM
from pygen.triton_kernels._scan import BLOCK, MAX_PARTS, SCAN_TILE, scan
from pygen.triton_kernels._scores import mark_tokens
from pygen.triton_kernels._survivors import LIST_ROOM

# Rows of the table of float32 knobs, after those of the filters.
TEMPERATURE = tl.constexpr(7)
REPETITION = tl.constexpr(8)
PRESENCE = tl.constexpr(9)
FREQUENCY = tl.constexpr(10)
# Rows of the table of int32 knobs.
MIN_TOKENS_TO_KEEP = tl.constexpr(0)
NGRAM_SIZE = tl.constexpr(1)
PROMPT_LENGTH = tl.constexpr(2)
FLAGS = tl.constexpr(3)

# Bits of a row's flags, above those of the filters that act.
FILTERED = tl.constexpr(127)
NUCLEUS = tl.constexpr(128)  # top_p comes first, so the scan sums masses
RACES = tl.constexpr(256)  # nothing filters, so the scan draws
PENALIZED = tl.constexpr(512)
COUNTED = tl.constexpr(1024)  # a presence or frequency penalty acts
MARKED = tl.constexpr(2048)  # some token is penalised, banned or suppressed

# Bits of `modes`.
NOISE_GIVEN = tl.constexpr(1)
STEPS_GIVEN = tl.constexpr(2)
STORES = tl.constexpr(4)  # the scan writes the scores it sees
EXTENDS = tl.constexpr(8)  # the draws extend sequences
HISTORY_GROWS = tl.constexpr(16)  # by the steps of the row, which an extension of its sequence counts up

SCAN_WARPS = 8
ROW_WARPS = 8
ROW_REGISTERS = 255


def real_room(vocab_size: int) -> int:
    """float32 words of workspace that a row needs; the order is that of `reals_of`."""
    fixed = MAX_PARTS.value + 2 * TOP_H_ROOM.value + LIST_ROOM.value
    return 2 * -(-vocab_size // int(BLOCK.value)) + int(fixed)


def integer_room(vocab_size: int, counted: bool) -> int:
    """int32 words of workspace that a row needs; the order is that of `integers_of`."""
    words, blocks = -(-vocab_size // 32), -(-vocab_size // int(BLOCK.value))
    return 2 * words + int(2 * MAX_PARTS.value + LIST_ROOM.value) + blocks + (vocab_size if counted else 0)


@triton.jit
def reals_of(reals, row, stride, vocab_size):
    """block_max, block_sum, part_value, room of top_h, list_scores."""
    blocks = (vocab_size + BLOCK - 1) // BLOCK
    block_max = reals + row * stride
    part_value = block_max + 2 * blocks
    room = part_value + MAX_PARTS
    return block_max, block_max + blocks, part_value, room, room + 2 * TOP_H_ROOM


@triton.jit
def integers_of(integers, row, stride, vocab_size):
    """seen, banned, part_id, part_nan, list_ids, block_list, counts."""
    words = (vocab_size + 31) // 32
    seen = integers + row * stride
    part_id = seen + 2 * words
    list_ids = part_id + 2 * MAX_PARTS
    block_list = list_ids + LIST_ROOM
    counts = block_list + (vocab_size + BLOCK - 1) // BLOCK
    return seen, seen + words, part_id, part_id + MAX_PARTS, list_ids, block_list, counts


@triton.jit
def penalties_of(knobs, row, rows):
    """repetition, presence, frequency."""
    return (
        tl.load(knobs + REPETITION * rows + row),
        tl.load(knobs + PRESENCE * rows + row),
        tl.load(knobs + FREQUENCY * rows + row),
    )


@triton.jit
def scan_part(
    row, part, begin, end,
    logits, logits_stride, vocab_size, rows, knobs, counters,
    history, history_stride, length, bias, bias_stride, suppress, suppress_stride, suppress_count,
    bitmask, bitmask_stride, tables, modes, noise, noise_stride, seeds, steps, step,
    reals, reals_stride, integers, integers_stride, stored, stored_stride,
):  # fmt: skip
    """Marks and scans the tokens [begin, end) of a row."""
    flags = tl.load(counters + FLAGS * rows + row)
    counted = (flags & COUNTED) != 0
    repetition, presence, frequency = penalties_of(knobs, row, rows)
    block_max, block_sum, part_value, _, _ = reals_of(reals, row, reals_stride, vocab_size)
    seen, banned, part_id, part_nan, _, _, counts = integers_of(integers, row, integers_stride, vocab_size)
    if (modes & HISTORY_GROWS) != 0:
        length += tl.load(steps + row).to(tl.int32)
    if (flags & MARKED) != 0:
        mark_tokens(
            seen, banned, counts, begin, tl.minimum(end, vocab_size), vocab_size,
            history + row * history_stride, length, tl.load(counters + PROMPT_LENGTH * rows + row),
            tl.load(counters + NGRAM_SIZE * rows + row), (flags & PENALIZED) != 0, counted,
            suppress + row * suppress_stride, suppress_count, tables,
        )  # fmt: skip
    if (modes & STEPS_GIVEN) != 0:
        step = tl.load(steps + row).to(tl.int32)
    scan(
        begin, end, vocab_size, part, tl.load(knobs + TEMPERATURE * rows + row),
        block_max, block_sum, (flags & NUCLEUS) != 0, part_value, part_id, part_nan, (flags & RACES) != 0,
        noise + row * noise_stride, (modes & NOISE_GIVEN) != 0,
        tl.load(seeds + row), step, stored + row * stored_stride, (modes & STORES) != 0,
        logits + row * logits_stride, bias + row * bias_stride, bitmask + row * bitmask_stride, seen, banned, counts,
        tables, (flags & MARKED) != 0, counted, repetition, presence, frequency,
    )  # fmt: skip


@triton.jit(
    do_not_specialize=[
        "logits_stride", "vocab_size", "rows", "history_stride", "length", "bias_stride", "suppress_stride",
        "suppress_count", "bitmask_stride", "tables", "modes", "noise_stride", "step", "reals_stride",
        "integers_stride", "stored_stride", "tokens",
    ]
)  # fmt: skip
def scan_rows_kernel(
    logits, logits_stride: tl.int64, vocab_size: tl.int32, rows: tl.int64, knobs, counters,
    history, history_stride: tl.int64, length: tl.int32, bias, bias_stride: tl.int64,
    suppress, suppress_stride: tl.int64, suppress_count: tl.int32, bitmask, bitmask_stride: tl.int64,
    tables: tl.int32, modes: tl.int32, noise, noise_stride: tl.int64, seeds, steps, step: tl.int32,
    reals, reals_stride: tl.int64, integers, integers_stride: tl.int64, stored, stored_stride: tl.int64,
    tokens: tl.int32, ALIGNED: tl.constexpr,
):  # fmt: skip
    """Grid (rows, parts): program (row, part) scans `tokens` tokens, a multiple of SCAN_TILE."""
    row = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    if ALIGNED:
        logits_stride = tl.multiple_of(logits_stride, 8)
    begin = tl.multiple_of(part * tokens, SCAN_TILE)
    scan_part(
        row, part, begin, tl.minimum(begin + tokens, vocab_size),
        logits, logits_stride, vocab_size, rows.to(tl.int64), knobs, counters,
        history, history_stride, length, bias, bias_stride, suppress, suppress_stride, suppress_count,
        bitmask, bitmask_stride, tables, modes, noise, noise_stride, seeds, steps, step,
        reals, reals_stride, integers, integers_stride, stored, stored_stride,
    )  # fmt: skip
