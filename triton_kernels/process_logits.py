"""process_logits: a scan that writes the scores of every row, split over programs, then one program per row filters.

Every logit is read once. The program of a row works on its scores in the output, or on a short list of them.
"""

import triton
import triton.language as tl
from pygen.triton_kernels import _arguments as arguments
from pygen.triton_kernels._filters import apply_filters, row_filters
from pygen.triton_kernels._knobs import FLAGS, NUM_FLOAT_KNOBS, NUM_INT_KNOBS
from pygen.triton_kernels._row import STORES, TEMPERATURE
from pygen.triton_kernels._scan_rows import SCAN_WARPS, scan_rows_kernel
from pygen.triton_kernels._scores import plain_scores
from pygen.triton_kernels._select import TILE
from pygen.triton_kernels._specialization import ROW_REGISTERS, ROW_WARPS, Specialization, launch, signature_of
from pygen.triton_kernels._survivors import fitting_temperature, gather_or_fill, row_facts, status_of
from pygen.triton_kernels._workspace import BLOCK, WORKSPACE_TYPES, Workspace, row_workspace
from torch import Tensor
from triton.language.extra.cuda import gdc_wait

from pygen.ops._prepared import Run
from pygen.ops._shaping import Shaping


def prepare(shaping: Shaping, out: Tensor) -> Run:
    """The calls of checked arguments."""
    rows, vocab_size, device = shaping.like.rows, shaping.like.vocab_size, shaping.like.device
    of_rows = arguments.RowArguments(shaping, None, out, STORES.value, races=False)
    parts, tokens = arguments.parts_of_rows(rows, vocab_size, device)
    filters = of_rows.for_filters()

    def run(logits: Tensor, step: int, length: int) -> None:
        logits = logits.detach()
        aligned = arguments.is_aligned(logits)
        row_arguments = of_rows.of_call(logits, 0, length)
        launch(scan_rows_kernel, (rows, parts), *row_arguments, tokens, num_warps=SCAN_WARPS, ALIGNED=aligned)
        launch(
            filter_rows_kernel, (rows,), *filters, parts,
            num_warps=ROW_WARPS, max_registers=ROW_REGISTERS, dependent=True,
        )  # fmt: skip

    return run


@triton.jit(do_not_specialize=["vocab_size", "f32_stride", "i32_stride", "scores_stride", "parts"])
def filter_rows_kernel(
    knobs, int_knobs, workspace: Workspace,
    vocab_size: tl.int32, f32_stride: tl.int64, i32_stride: tl.int64, scores_stride: tl.int64, parts: tl.int32,
    PDL: tl.constexpr,
):  # fmt: skip
    """Grid (rows,): the temperature and the filters, on the scores that the scan left in `workspace.scores`."""
    row = tl.program_id(0).to(tl.int64)
    temperature = tl.load(knobs + row * NUM_FLOAT_KNOBS + TEMPERATURE)
    work = row_workspace(workspace.f32, f32_stride, workspace.i32, i32_stride, row, vocab_size)
    stored = workspace.scores + row * scores_stride
    if PDL:
        # What follows reads what the scan wrote.
        gdc_wait()
    tl.store(workspace.marks + row, parts * 0)
    largest, nan = row_facts(work.block_max, (vocab_size + BLOCK - 1) // BLOCK, work.part_nan, parts)
    if (status_of(largest, nan) == 0) & (temperature > 0.0):
        temperature = fitting_temperature(temperature, largest)
        largest = tl.math.div_rn(largest, temperature)
        filters = row_filters(knobs, int_knobs, row, tl.load(int_knobs + row * NUM_INT_KNOBS + FLAGS))
        listed, size, total_mass = gather_or_fill(
            plain_scores(stored, work, stored, True), work, filters, vocab_size, temperature, largest
        )
        array = stored
        if listed > 0:
            array = work.list_scores
        if filters.flags != 0:
            array, listed, size, _largest = apply_filters(array, listed, size, filters, largest, total_mass, work)
        if listed > 0:
            for start in range(0, vocab_size, TILE):
                token = start + tl.arange(0, TILE)
                tl.store(stored + token, tl.full((TILE,), float("-inf"), tl.float32), mask=token < vocab_size)
            tl.debug_barrier()
            for start in range(0, size, TILE):
                at = start + tl.arange(0, TILE)
                score = tl.load(work.list_scores + at, mask=at < size, other=float("-inf"))
                token = tl.load(work.list_ids + at, mask=at < size, other=0)
                tl.store(stored + token, score, mask=at < size)


def specializations() -> list[Specialization]:
    """The launch that filters; `sample` lists the scan."""
    signature = signature_of(filter_rows_kernel, {"knobs": "fp32", "int_knobs": "i32", "workspace": WORKSPACE_TYPES})
    return [Specialization("filter", filter_rows_kernel, signature, {}, ROW_WARPS, ROW_REGISTERS, dependent=True)]
