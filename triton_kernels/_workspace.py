"""The workspace of a launch, and how a row divides its part of it."""

from typing import Any, NamedTuple

import triton
import triton.language as tl

BLOCK = tl.constexpr(64)  # tokens that share a maximum
MAX_PARTS = tl.constexpr(64)  # programs that share a row
LIST_CAPACITY = tl.constexpr(4096)  # scores of a short list
# top_h looks at the 100 largest scores only, and arrays have powers of two.
TOP_H_TOKENS = tl.constexpr(100)
TOP_H_CAPACITY = tl.constexpr(128)


class Workspace(NamedTuple):
    """The workspace of all rows, as a kernel takes it; pointers."""

    f32: Any
    i32: Any
    scores: Any  # (rows, vocab_size) float32
    marks: Any  # (rows,) int32, zero between calls: how far the programs of a row are with its marks, see `mark_row`


WORKSPACE_TYPES = Workspace("fp32", "i32", "fp32", "i32")


class RowWorkspace(NamedTuple):
    """The workspace of one row; pointers. A block is a run of BLOCK tokens, a part is what one program scans."""

    block_max: Any  # (blocks,) float32
    block_sum: Any  # (blocks,) float32
    part_value: Any  # (MAX_PARTS,) float32
    top_h_scratch: Any  # (TOP_H_CAPACITY,) float32, then as many float64
    list_scores: Any  # (LIST_CAPACITY,) float32
    seen: Any  # (ceil(vocab_size / 32),) int32, a bit per token
    banned: Any  # the same
    part_id: Any  # (MAX_PARTS,) int32
    part_nan: Any  # (MAX_PARTS,) int32
    list_ids: Any  # (LIST_CAPACITY,) int32
    block_list: Any  # (blocks,) int32
    counts: Any  # (vocab_size,) int32, where a presence or frequency penalty may act


def f32_words(vocab_size: int) -> int:
    """float32 words that a row needs; the order is that of `row_workspace`."""
    fixed = MAX_PARTS.value + 3 * TOP_H_CAPACITY.value + LIST_CAPACITY.value
    return 2 * -(-vocab_size // int(BLOCK.value)) + int(fixed)


def i32_words(vocab_size: int, counted: bool) -> int:
    """int32 words that a row needs; the order is that of `row_workspace`. counted: whether it has `counts`."""
    words, blocks = -(-vocab_size // 32), -(-vocab_size // int(BLOCK.value))
    return 2 * words + int(2 * MAX_PARTS.value + LIST_CAPACITY.value) + blocks + (vocab_size if counted else 0)


@triton.jit
def row_workspace(f32, f32_stride, i32, i32_stride, row, vocab_size):
    """The workspace of a row; the strides are `f32_words` and `i32_words`."""
    blocks = (vocab_size + BLOCK - 1) // BLOCK
    words = (vocab_size + 31) // 32
    block_max = f32 + row * f32_stride
    part_value = block_max + 2 * blocks
    top_h_scratch = part_value + MAX_PARTS
    seen = i32 + row * i32_stride
    part_id = seen + 2 * words
    list_ids = part_id + 2 * MAX_PARTS
    block_list = list_ids + LIST_CAPACITY
    return RowWorkspace(
        block_max=block_max,
        block_sum=block_max + blocks,
        part_value=part_value,
        top_h_scratch=top_h_scratch,
        list_scores=top_h_scratch + 3 * TOP_H_CAPACITY,
        seen=seen,
        banned=seen + words,
        part_id=part_id,
        part_nan=part_id + MAX_PARTS,
        list_ids=list_ids,
        block_list=block_list,
        counts=block_list + blocks,
    )
