"""sample: one launch over small rows, else two: a scan of all logits, split over programs, and one program per row.

The scan leaves the maximum of every block of 64 tokens, or, where nothing filters, the best of its race. The program of
the row reads again what the first filter can keep, filters, races, and does the row's bookkeeping.
"""

import torch
import triton
import triton.language as tl
from pygen.triton_kernels import _arguments as arguments
from pygen.triton_kernels._draw import extend_sequence, race, write_logprobs, write_no_logprobs
from pygen.triton_kernels._filters import apply_filters
from pygen.triton_kernels._rows import (
    COUNTED,
    EXTENDS,
    FILTERED,
    FLAGS,
    HISTORY_GROWS,
    MARKED,
    MIN_TOKENS_TO_KEEP,
    NOISE_GIVEN,
    RACES,
    ROW_REGISTERS,
    ROW_WARPS,
    SCAN_WARPS,
    STEPS_GIVEN,
    STORES,
    TEMPERATURE,
    integers_of,
    penalties_of,
    reals_of,
    scan_part,
    scan_rows_kernel,
)
from pygen.triton_kernels._scan import BLOCK, LARGE_ID, MAX_PARTS
from pygen.triton_kernels._specialization import Specialization, launch, signature_of
from pygen.triton_kernels._survivors import (
    first_largest,
    fitting_temperature,
    gather_or_fill,
    race_of_row,
    row_facts,
    status_of,
)
from torch import Tensor

from pygen.backends import BackendError
from pygen.ops._noise import Noise, given_by_torch
from pygen.ops._outputs import SampleOutput
from pygen.ops._prepared import Run
from pygen.ops._shaping import Shaping

# From here on float32 loses too much of the noise beside a score that the scan raced.
_LARGEST_WITH_NOISE = tl.constexpr(4096.0)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pygen.ops._state import DecodeState


def prepare(shaping: Shaping, noise: Noise, num_logprobs: int, out: SampleOutput, state: "DecodeState | None") -> Run:
    """The steps of a checked call. torch's noise is written to memory first, in a launch of torch's own."""
    rows, vocab_size, device = shaping.like.rows, shaping.like.vocab_size, shaping.like.device
    if noise.advances_generator and state is not None and state.generator_state is not None:
        raise BackendError("`sample`: backend 'triton' cannot take torch's noise from `state.generator_state`")
    noise, refill = given_by_torch(noise, shaping.like)
    small = vocab_size <= arguments.SMALL_VOCABULARY
    whole = small or num_logprobs > 0 or arguments.may_filter(shaping)
    modes: int = (STORES.value if small else 0) | (EXTENDS.value if state is not None else 0)
    stored = torch.empty((rows, vocab_size) if whole else (1, 1), dtype=torch.float32, device=device)
    of_rows = arguments.RowArguments(shaping, noise, stored, modes, races=num_logprobs == 0)
    results = _results(out, num_logprobs, device)
    sequences = _sequences(state, device)
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
            sample_rows_kernel, (rows,), *row_arguments, parts, *results, *sequences, column,
            num_warps=ROW_WARPS, max_registers=ROW_REGISTERS,
        )  # fmt: skip

    return run


def _results(out: SampleOutput, num_logprobs: int, device: torch.device) -> tuple[object, ...]:
    if out.logprobs is None or out.top_logprobs is None:
        none = torch.zeros(1, device=device)
        return (out.token_ids, out.status, 0, none, out.token_ids, none)
    return (out.token_ids, out.status, num_logprobs, out.logprobs, *out.top_logprobs)


def _sequences(state: "DecodeState | None", device: torch.device) -> tuple[object, ...]:
    ticket = torch.zeros(1, dtype=torch.int64, device=device)
    if state is None:
        none = torch.zeros(1, dtype=torch.uint8, device=device)
        return (ticket, 0, ticket, 0, none, ticket, ticket, ticket, 0, 0, ticket)
    eos = ticket if state.eos_token_ids is None else state.eos_token_ids
    eos_count = 0 if state.eos_token_ids is None else len(eos)
    return (
        state.token_ids, state.token_ids.stride(0), state.history, state.history.stride(0),
        state.finished.view(torch.uint8), state.num_generated, state.unfinished, eos, eos_count, state.pad_token_id,
        ticket,
    )  # fmt: skip


@triton.jit(
    do_not_specialize=[
        "logits_stride", "vocab_size", "rows", "history_stride", "length", "bias_stride", "suppress_stride",
        "suppress_count", "bitmask_stride", "tables", "modes", "noise_stride", "step", "reals_stride",
        "integers_stride", "stored_stride", "parts", "num_logprobs", "sequences_stride", "sequence_history_stride",
        "eos_count", "pad_token_id", "column",
    ]
)  # fmt: skip
def sample_rows_kernel(
    logits, logits_stride: tl.int64, vocab_size: tl.int32, rows: tl.int64, knobs, counters,
    history, history_stride: tl.int64, length: tl.int32, bias, bias_stride: tl.int64,
    suppress, suppress_stride: tl.int64, suppress_count: tl.int32, bitmask, bitmask_stride: tl.int64,
    tables: tl.int32, modes: tl.int32, noise, noise_stride: tl.int64, seeds, steps, step: tl.int32,
    reals, reals_stride: tl.int64, integers, integers_stride: tl.int64, stored, stored_stride: tl.int64,
    parts: tl.int32, token_ids, status, num_logprobs: tl.int32, logprobs, top_ids, top_logprobs,
    sequences, sequences_stride: tl.int64, sequence_history, sequence_history_stride: tl.int64,
    finished, num_generated, unfinished, eos, eos_count: tl.int32, pad_token_id: tl.int64, ticket, column: tl.int64,
):  # fmt: skip
    """Grid (rows,): everything after the scan; where the modes say STORES, the scan too."""
    row = tl.program_id(0).to(tl.int64)
    rows = rows.to(tl.int64)
    is_stored = (modes & STORES) != 0
    if is_stored:
        scan_part(
            row, 0, 0, vocab_size,
            logits, logits_stride, vocab_size, rows, knobs, counters,
            history, history_stride, length, bias, bias_stride, suppress, suppress_stride, suppress_count,
            bitmask, bitmask_stride, tables, modes, noise, noise_stride, seeds, steps, step,
            reals, reals_stride, integers, integers_stride, stored, stored_stride,
        )  # fmt: skip
        tl.debug_barrier()

    flags = tl.load(counters + FLAGS * rows + row)
    counted = (flags & COUNTED) != 0
    marked = (flags & MARKED) != 0
    races = (flags & RACES) != 0
    flags = flags & FILTERED
    temperature = tl.load(knobs + TEMPERATURE * rows + row)
    repetition, presence, frequency = penalties_of(knobs, row, rows)
    block_max, block_sum, part_value, room, list_scores = reals_of(reals, row, reals_stride, vocab_size)
    seen, banned, part_id, part_nan, list_ids, block_list, counts = integers_of(
        integers, row, integers_stride, vocab_size
    )
    logits += row * logits_stride
    bias += row * bias_stride
    bitmask += row * bitmask_stride
    stored += row * stored_stride
    if (modes & STEPS_GIVEN) != 0:
        step = tl.load(steps + row).to(tl.int32)

    blocks = (vocab_size + BLOCK - 1) // BLOCK
    largest, nan = row_facts(block_max, blocks, part_nan, parts)
    row_status = status_of(largest, nan)
    temperature = fitting_temperature(temperature, largest)
    tl.store(status + row, row_status)
    drawn = (row_status == 0) & (temperature > 0.0)
    token = vocab_size * 0
    over_temperature = tl.abs(tl.math.div_rn(largest, tl.where(drawn, temperature, 1.0)))
    if drawn & races & (over_temperature >= _LARGEST_WITH_NOISE):
        token = race_of_row(
            tl.math.div_rn(largest, temperature), temperature, vocab_size,
            noise + row * noise_stride, (modes & NOISE_GIVEN) != 0, tl.load(seeds + row), step, stored, is_stored,
            logits, bias, bitmask, seen, banned, counts, tables, marked, counted, repetition, presence, frequency,
        )  # fmt: skip
    if drawn & races & (over_temperature < _LARGEST_WITH_NOISE):
        part = tl.arange(0, MAX_PARTS)
        value = tl.load(part_value + part, mask=part < parts, other=float("-inf"))
        best = tl.load(part_id + part, mask=part < parts, other=LARGE_ID)
        token = tl.min(tl.where(value == tl.max(value), best, LARGE_ID))
    if drawn == 0:
        token = first_largest(
            largest, block_max, blocks, vocab_size, stored, is_stored,
            logits, bias, bitmask, seen, banned, counts, tables, marked, counted, repetition, presence, frequency,
        )  # fmt: skip
    if (drawn & (races == 0)) | ((row_status == 0) & (num_logprobs > 0)):
        divisor = tl.where(drawn, temperature, 1.0)
        largest = tl.math.div_rn(largest, divisor)
        listed, size, total_mass = gather_or_fill(
            flags, knobs + row, rows, tl.load(counters + MIN_TOKENS_TO_KEEP * rows + row), divisor, largest,
            vocab_size, block_max, block_sum, block_list, list_scores, list_ids, stored, is_stored,
            logits, bias, bitmask, seen, banned, counts, tables, marked, counted, repetition, presence, frequency,
        )  # fmt: skip
        array = stored
        if listed > 0:
            array = list_scores
        if drawn:
            if flags != 0:
                largest = apply_filters(
                    array, size, knobs + row, rows, flags, tl.load(counters + MIN_TOKENS_TO_KEEP * rows + row),
                    largest, total_mass, room,
                )  # fmt: skip
            token = race(
                array, list_ids, listed, size, largest, noise + row * noise_stride, (modes & NOISE_GIVEN) != 0,
                tl.load(seeds + row), step,
            )  # fmt: skip
        if num_logprobs > 0:
            write_logprobs(
                array, list_ids, listed, size, largest, token, num_logprobs,
                logprobs + row, top_ids + row * num_logprobs, top_logprobs + row * num_logprobs,
            )  # fmt: skip
    if (row_status != 0) & (num_logprobs > 0):
        write_no_logprobs(num_logprobs, logprobs + row, top_ids + row * num_logprobs, top_logprobs + row * num_logprobs)

    taken = token.to(tl.int64)
    if (modes & EXTENDS) != 0:
        taken = extend_sequence(
            taken, row, rows, column, sequences, sequences_stride, sequence_history, sequence_history_stride,
            finished, num_generated, unfinished, eos, eos_count, pad_token_id, ticket,
            steps, (modes & HISTORY_GROWS) != 0,
        )  # fmt: skip
    tl.store(token_ids + row, taken)


_POINTERS = {
    "knobs": "fp32", "counters": "i32", "history": "i64", "bias": "fp32", "suppress": "i64", "bitmask": "i32",
    "noise": "fp32", "seeds": "i64", "steps": "i64", "reals": "fp32", "integers": "i32", "stored": "fp32",
}  # fmt: skip
_POINTERS_OF_DRAW = {
    "token_ids": "i64", "status": "i32", "logprobs": "fp32", "top_ids": "i64", "top_logprobs": "fp32",
    "sequences": "i64", "sequence_history": "i64", "finished": "u8", "num_generated": "i64", "unfinished": "i64",
    "eos": "i64", "ticket": "i64",
}  # fmt: skip


def specializations() -> list[Specialization]:
    listed = []
    for dtype in ("fp32", "fp16", "bf16"):
        pointers = {"logits": dtype, **_POINTERS}
        signature = signature_of(scan_rows_kernel, pointers)
        for aligned in (False, True):
            name = f"scan {dtype}{' aligned' if aligned else ''}"
            constexprs: dict[str, object] = {"ALIGNED": aligned}
            listed.append(Specialization(name, scan_rows_kernel, signature, constexprs, SCAN_WARPS))
        signature = signature_of(sample_rows_kernel, {**pointers, **_POINTERS_OF_DRAW})
        listed.append(Specialization(f"rows {dtype}", sample_rows_kernel, signature, {}, ROW_WARPS, ROW_REGISTERS))
    return listed
