"""sample: one launch over small rows, else two: a scan of all logits, split over programs, and one program per row.

The scan leaves the maximum of every block of 64 tokens, or, where nothing filters, the best of its race. The program of
the row reads again what the first filter can keep, filters, races, and does the row's bookkeeping.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from pygen.triton_kernels import _arguments as arguments
from pygen.triton_kernels._draw import (
    race,
    race_of_row,
    write_kept,
    write_kept_greedy,
    write_logprobs,
    write_no_logprobs,
)
from pygen.triton_kernels._filters import apply_filters, row_filters
from pygen.triton_kernels._knobs import NUM_FLOAT_KNOBS, RACES
from pygen.triton_kernels._row import (
    EXTENDS,
    HISTORY_GROWS,
    ROW_TABLES_TYPES,
    STORES,
    TEMPERATURE,
    Numbers,
    RowTables,
    row_flags,
    row_noise,
    row_scores,
    row_step,
)
from pygen.triton_kernels._scan import LARGE_ID
from pygen.triton_kernels._scan_rows import SCAN_WARPS, scan_part, scan_rows_kernel
from pygen.triton_kernels._sequences import SEQUENCES_TYPES, Sequences, extend_sequence
from pygen.triton_kernels._specialization import ROW_REGISTERS, ROW_WARPS, Specialization, launch, signature_of
from pygen.triton_kernels._survivors import first_largest, fitting_temperature, gather_or_fill, row_facts, status_of
from pygen.triton_kernels._workspace import BLOCK, MAX_PARTS, WORKSPACE_TYPES, Workspace, row_workspace
from torch import Tensor
from triton.language.extra.cuda import gdc_wait

from pygen.backends import BackendError
from pygen.ops._kept_tokens import KeptRows
from pygen.ops._noise import Noise, given_by_torch
from pygen.ops._outputs import SampleOutput
from pygen.ops._prepared import Run
from pygen.ops._shaping import Shaping
from pygen.ops._state import DecodeState

# From here on float32 loses too much of the noise beside a score that the scan raced.
_LARGEST_WITH_NOISE = tl.constexpr(4096.0)

_REGISTERS_OF_SCANS = 255


class Results(NamedTuple):
    """Where a launch writes; pointers."""

    token_ids: Any  # (rows,) int64
    status: Any  # (rows,) int32
    logprobs: Any  # (rows,) float32
    top_ids: Any  # (rows, num_logprobs) int64
    top_logprobs: Any  # (rows, num_logprobs) float32
    kept_ids: Any  # (rows, kept_limit) int32
    kept_counts: Any  # (rows,) int32
    log_mass: Any  # (rows,) float32


RESULTS_TYPES = Results("i64", "i32", "fp32", "i64", "fp32", "i32", "i32", "fp32")


def prepare(shaping: Shaping, noise: Noise, num_logprobs: int, out: SampleOutput, state: DecodeState | None) -> Run:
    """The steps of a checked call. torch's noise is written to memory first, in a launch of torch's own."""
    rows, vocab_size, device = shaping.like.rows, shaping.like.vocab_size, shaping.like.device
    if noise.advances_generator and state is not None and state.generator_state is not None:
        raise BackendError("`sample`: backend 'triton' cannot take torch's noise from `state.generator_state`")
    noise, refill = given_by_torch(noise, shaping.like)
    small = vocab_size <= arguments.SMALL_VOCABULARY
    kept_limit = out.kept.token_ids.shape[1] if isinstance(out.kept, KeptRows) else 0
    races = num_logprobs == 0 and kept_limit == 0
    whole = small or not races or arguments.may_filter(shaping)
    modes: int = (STORES.value if small else 0) | (EXTENDS.value if state is not None else 0)
    scores = torch.empty((rows, vocab_size) if whole else (1, 1), dtype=torch.float32, device=device)
    of_rows = arguments.RowArguments(shaping, noise, scores, modes, races)
    results = _results(out, device)
    sequences, numbers_of_sequences = _sequences(state, device)
    parts, tokens = (1, vocab_size) if small else arguments.parts_of_rows(rows, vocab_size, device)

    def run(logits: Tensor, step: int, length: int) -> None:
        refill()
        logits = logits.detach()
        row_arguments = of_rows.of_call(logits, step, length)
        if not small:
            aligned = arguments.is_aligned(logits)
            launch(scan_rows_kernel, (rows, parts), *row_arguments, tokens, num_warps=SCAN_WARPS, ALIGNED=aligned)
        column = 0 if state is None else state.prompt_length + (step if state.steps is None else 0)
        launch(
            sample_rows_kernel, (rows,), *row_arguments, parts, results, num_logprobs, kept_limit,
            sequences, *numbers_of_sequences, column,
            num_warps=ROW_WARPS, max_registers=_registers(small), dependent=not small, SCANS=small,
        )  # fmt: skip

    return run


def _registers(scans: bool) -> int:
    return _REGISTERS_OF_SCANS if scans else ROW_REGISTERS


def _results(out: SampleOutput, device: torch.device) -> Results:
    none = torch.zeros(1, device=device)
    logprobs = (none, out.token_ids, none)
    if out.logprobs is not None and out.top_logprobs is not None:
        logprobs = (out.logprobs, *out.top_logprobs)
    kept = out.kept if isinstance(out.kept, KeptRows) else (out.status, out.status, none)
    return Results(out.token_ids, out.status, *logprobs, *kept)


def _sequences(state: DecodeState | None, device: torch.device) -> tuple[Sequences, tuple[int, ...]]:
    """The state's tensors; its strides, the number of EOS tokens, and the pad token."""
    ticket = torch.zeros(1, dtype=torch.int64, device=device)
    if state is None:
        none = torch.zeros(1, dtype=torch.uint8, device=device)
        return Sequences(ticket, ticket, none, ticket, ticket, ticket, ticket), (0, 0, 0, 0)
    eos_token_ids = ticket if state.eos_token_ids is None else state.eos_token_ids
    eos_count = 0 if state.eos_token_ids is None else len(eos_token_ids)
    sequences = Sequences(
        state.token_ids, state.history, state.finished.view(torch.uint8), state.num_generated, state.unfinished,
        eos_token_ids, ticket,
    )  # fmt: skip
    return sequences, (state.token_ids.stride(0), state.history.stride(0), eos_count, state.pad_token_id)


@triton.jit(
    do_not_specialize=[
        "logits_stride", "vocab_size", "history_stride", "length", "bias_stride", "suppress_stride", "suppress_count",
        "bitmask_stride", "modes", "noise_stride", "step", "f32_stride", "i32_stride", "scores_stride", "parts",
        "num_logprobs", "kept_limit", "sequences_stride", "sequences_history_stride", "eos_count", "pad_token_id",
        "column",
    ]
)  # fmt: skip
def sample_rows_kernel(
    logits, tables: RowTables, workspace: Workspace,
    logits_stride: tl.int64, vocab_size: tl.int32, history_stride: tl.int64, length: tl.int32, bias_stride: tl.int64,
    suppress_stride: tl.int64, suppress_count: tl.int32, bitmask_stride: tl.int64, modes: tl.int32,
    noise_stride: tl.int64, step: tl.int32, f32_stride: tl.int64, i32_stride: tl.int64, scores_stride: tl.int64,
    parts: tl.int32, results: Results, num_logprobs: tl.int32, kept_limit: tl.int32,
    sequences: Sequences, sequences_stride: tl.int64, sequences_history_stride: tl.int64, eos_count: tl.int32,
    pad_token_id: tl.int64, column: tl.int64, SCANS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Grid (rows,): everything after the scan; where SCANS, the scan too, which stores the scores."""
    row = tl.program_id(0).to(tl.int64)
    numbers = Numbers(
        logits_stride, vocab_size, history_stride, length, bias_stride, suppress_stride, suppress_count,
        bitmask_stride, modes, noise_stride, step, f32_stride, i32_stride, scores_stride,
    )  # fmt: skip
    if SCANS:
        scan_part(row, 0, 0, vocab_size, logits, tables, workspace, numbers)
        tl.debug_barrier()

    flags = row_flags(tables, row)
    races = (flags & RACES) != 0
    work = row_workspace(workspace.f32, f32_stride, workspace.i32, i32_stride, row, vocab_size)
    scores = row_scores(logits, tables, workspace, work, numbers, row, flags, SCANS)
    noise = row_noise(tables, numbers, row, row_step(tables, numbers, row))
    temperature = tl.load(tables.knobs + row * NUM_FLOAT_KNOBS + TEMPERATURE)
    if PDL:
        # What follows reads what the scan wrote.
        gdc_wait()
    tl.store(workspace.marks + row, parts * 0)
    largest, nan = row_facts(work.block_max, (vocab_size + BLOCK - 1) // BLOCK, work.part_nan, parts)
    row_status = status_of(largest, nan)
    temperature = fitting_temperature(temperature, largest)
    tl.store(results.status + row, row_status)
    drawn = (row_status == 0) & (temperature > 0.0)
    token = vocab_size * 0
    over_temperature = tl.abs(tl.math.div_rn(largest, tl.where(drawn, temperature, 1.0)))
    if drawn & races & (over_temperature >= _LARGEST_WITH_NOISE):
        token = race_of_row(scores, vocab_size, temperature, tl.math.div_rn(largest, temperature), noise)
    if drawn & races & (over_temperature < _LARGEST_WITH_NOISE):
        part = tl.arange(0, MAX_PARTS)
        value = tl.load(work.part_value + part, mask=part < parts, other=float("-inf"))
        best = tl.load(work.part_id + part, mask=part < parts, other=LARGE_ID)
        token = tl.min(tl.where(value == tl.max(value), best, LARGE_ID))
    if drawn == 0:
        token = first_largest(scores, work.block_max, vocab_size, largest)
    if (drawn & (races == 0)) | ((row_status == 0) & (num_logprobs > 0)):
        divisor = tl.where(drawn, temperature, 1.0)
        largest = tl.math.div_rn(largest, divisor)
        filters = row_filters(tables.knobs, tables.int_knobs, row, flags)
        listed, size, total_mass = gather_or_fill(scores, work, filters, vocab_size, divisor, largest)
        array = scores.stored
        if listed > 0:
            array = work.list_scores
        if drawn:
            if filters.flags != 0:
                array, listed, size, largest = apply_filters(array, listed, size, filters, largest, total_mass, work)
            token = race(array, work.list_ids, listed, size, largest, noise)
            if kept_limit > 0:
                write_kept(
                    array, work.list_ids, listed, size, largest, kept_limit, results.kept_ids + row * kept_limit,
                    results.kept_counts + row, results.log_mass + row,
                )  # fmt: skip
        if num_logprobs > 0:
            write_logprobs(
                array, work.list_ids, listed, size, largest, token, num_logprobs, results.logprobs + row,
                results.top_ids + row * num_logprobs, results.top_logprobs + row * num_logprobs,
            )  # fmt: skip
    if (row_status != 0) & (num_logprobs > 0):
        write_no_logprobs(
            num_logprobs, results.logprobs + row, results.top_ids + row * num_logprobs,
            results.top_logprobs + row * num_logprobs,
        )  # fmt: skip

    if kept_limit > 0:
        gone = row_status != 0
        if (modes & EXTENDS) != 0:
            gone = gone | (tl.load(sequences.finished + row) != 0)
        if gone | (drawn == 0):
            write_kept_greedy(
                token, largest, gone, results.kept_ids + row * kept_limit, results.kept_counts + row,
                results.log_mass + row,
            )  # fmt: skip

    taken = token.to(tl.int64)
    if (modes & EXTENDS) != 0:
        taken = extend_sequence(
            taken, row, sequences, sequences_stride, sequences_history_stride, eos_count, pad_token_id, column,
            tables.steps, (modes & HISTORY_GROWS) != 0,
        )  # fmt: skip
    tl.store(results.token_ids + row, taken)


def specializations() -> list[Specialization]:
    listed = []
    for dtype in ("fp32", "fp16", "bf16"):
        pointers = {"logits": dtype, "tables": ROW_TABLES_TYPES, "workspace": WORKSPACE_TYPES}
        signature = signature_of(scan_rows_kernel, pointers)
        for aligned in (False, True):
            name = f"scan {dtype}{' aligned' if aligned else ''}"
            constexprs: dict[str, object] = {"ALIGNED": aligned}
            listed.append(Specialization(name, scan_rows_kernel, signature, constexprs, SCAN_WARPS))
        pointers |= {"results": RESULTS_TYPES, "sequences": SEQUENCES_TYPES}
        signature = signature_of(sample_rows_kernel, pointers)
        for scans in (False, True):
            name = f"rows {dtype}{' scanned' if scans else ''}"
            constexprs = {"SCANS": scans}
            listed.append(
                Specialization(
                    name, sample_rows_kernel, signature, constexprs, ROW_WARPS, _registers(scans), dependent=not scans
                )
            )
    return listed
