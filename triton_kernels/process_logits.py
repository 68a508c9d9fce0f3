"""process_logits: a scan that writes the scores of every row, split over programs, then one program per row filters.

Every logit is read once. The program of a row works on its scores in the output, or on a short list of them.
"""

import triton
import triton.language as tl
from pygen.triton_kernels import _arguments as arguments
from pygen.triton_kernels._filters import apply_filters
from pygen.triton_kernels._rows import (
    FILTERED,
    FLAGS,
    MIN_TOKENS_TO_KEEP,
    ROW_REGISTERS,
    ROW_WARPS,
    SCAN_WARPS,
    STORES,
    TEMPERATURE,
    integers_of,
    reals_of,
    scan_rows_kernel,
)
from pygen.triton_kernels._scan import BLOCK
from pygen.triton_kernels._select import TILE
from pygen.triton_kernels._specialization import Specialization, launch, signature_of
from pygen.triton_kernels._survivors import fitting_temperature, gather_or_fill, row_facts, status_of
from torch import Tensor

from pygen.ops._prepared import Run
from pygen.ops._shaping import Shaping


def prepare(shaping: Shaping, out: Tensor) -> Run:
    """The calls of checked arguments."""
    rows, vocab_size, device = shaping.like.rows, shaping.like.vocab_size, shaping.like.device
    of_rows = arguments.RowArguments(shaping, None, out, STORES.value, races=False)
    parts, tokens = arguments.parts_of_rows(rows, vocab_size, device)

    def run(logits: Tensor, step: int, length: int) -> None:
        logits = logits.detach()
        aligned = arguments.is_aligned(logits)
        row_arguments = of_rows.of_call(logits, 0, length)
        launch(scan_rows_kernel, (rows, parts), *row_arguments, tokens, num_warps=SCAN_WARPS, ALIGNED=aligned)
        launch(
            filter_rows_kernel, (rows,), *of_rows.knobs_and_workspace(), vocab_size, rows, parts,
            num_warps=ROW_WARPS, max_registers=ROW_REGISTERS,
        )  # fmt: skip

    return run


@triton.jit(
    do_not_specialize=["reals_stride", "integers_stride", "stored_stride", "vocab_size", "rows", "parts"],
)
def filter_rows_kernel(
    knobs, counters, reals, reals_stride: tl.int64, integers, integers_stride: tl.int64,
    stored, stored_stride: tl.int64, vocab_size: tl.int32, rows: tl.int64, parts: tl.int32,
):  # fmt: skip
    """Grid (rows,): the temperature and the filters, on the scores that the scan left in `stored`."""
    row = tl.program_id(0).to(tl.int64)
    rows = rows.to(tl.int64)
    flags = tl.load(counters + FLAGS * rows + row) & FILTERED
    temperature = tl.load(knobs + TEMPERATURE * rows + row)
    block_max, block_sum, _, room, list_scores = reals_of(reals, row, reals_stride, vocab_size)
    _, _, _, part_nan, list_ids, block_list, _ = integers_of(integers, row, integers_stride, vocab_size)
    stored += row * stored_stride
    largest, nan = row_facts(block_max, (vocab_size + BLOCK - 1) // BLOCK, part_nan, parts)
    if (status_of(largest, nan) == 0) & (temperature > 0.0):
        temperature = fitting_temperature(temperature, largest)
        largest = tl.math.div_rn(largest, temperature)
        keep = tl.load(counters + MIN_TOKENS_TO_KEEP * rows + row)
        # What the scan read is stored, so nothing is composed anew.
        listed, size, total_mass = gather_or_fill(
            flags, knobs + row, rows, keep, temperature, largest,
            vocab_size, block_max, block_sum, block_list, list_scores, list_ids, stored, True,
            stored, stored, stored, stored, stored, stored, 0, False, False, 1.0, 0.0, 0.0,
        )  # fmt: skip
        array = stored
        if listed > 0:
            array = list_scores
        if flags != 0:
            apply_filters(array, size, knobs + row, rows, flags, keep, largest, total_mass, room)
        if listed > 0:
            for start in range(0, vocab_size, TILE):
                token = start + tl.arange(0, TILE)
                tl.store(stored + token, tl.full((TILE,), float("-inf"), tl.float32), mask=token < vocab_size)
            tl.debug_barrier()
            for start in range(0, size, TILE):
                at = start + tl.arange(0, TILE)
                score = tl.load(list_scores + at, mask=at < size, other=float("-inf"))
                token = tl.load(list_ids + at, mask=at < size, other=0)
                tl.store(stored + token, score, mask=at < size)


def specializations() -> list[Specialization]:
    """The launch that filters; the scan is listed by `sample`."""
    pointers = {"knobs": "fp32", "counters": "i32", "reals": "fp32", "integers": "i32", "stored": "fp32"}
    signature = signature_of(filter_rows_kernel, pointers)
    return [Specialization("filter", filter_rows_kernel, signature, {}, ROW_WARPS, ROW_REGISTERS)]
