"""beam_step: two launches. In the first every beam finds its K best continuations, in the second every prompt merges
those of its beams and moves on (`_beam_update.py`).

The programs of a row share its log-sum-exp: each scans a part of the logits, and the last one to finish goes on alone.
It stores the scores and the maxima of their blocks, and takes from them what can be among the K best.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from pygen.triton_kernels import _arguments as arguments
from pygen.triton_kernels._beam_update import SELECT, prepare_update, update_specialization
from pygen.triton_kernels._filters import Filters, apply_filters, row_filters
from pygen.triton_kernels._knobs import (
    MARKED,
    NUCLEUS,
    NUM_FLOAT_KNOBS,
    TOP_K,
    TOP_K_ACTS,
)
from pygen.triton_kernels._philox import Noise, exponentials_of
from pygen.triton_kernels._row import (
    HISTORY_GROWS,
    NOISE_IS_GIVEN,
    ROW_TABLES_TYPES,
    TEMPERATURE,
    Numbers,
    RowTables,
    mark_row,
    row_flags,
    row_scores,
)
from pygen.triton_kernels._scan import LEAST_VALUE, SCAN_TILE, scan
from pygen.triton_kernels._scores import plain_scores, scores_of
from pygen.triton_kernels._select import LEAST_KEY, TILE, cut_of, ids_at, keep_from
from pygen.triton_kernels._specialization import Specialization, launch, signature_of
from pygen.triton_kernels._survivors import fitting_temperature, gather_or_fill, mass_of_row, row_facts, status_of
from pygen.triton_kernels._workspace import BLOCK, WORKSPACE_TYPES, Workspace, row_workspace
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents

from pygen.backends import BackendError
from pygen.ops._beam_call import BeamCall, BeamWorkspace
from pygen.ops._noise import given_by_torch

_NUM_WARPS = 8
_REGISTERS_OF_DRAWS = 255


class Beams(NamedTuple):
    """What a launch knows of the beams, and where it writes; pointers."""

    slots: Any  # (beams,) int64: the row of a beam
    running_scores: Any  # (beams,) float32
    candidate_knobs: Any  # (NUM_FLOAT_KNOBS,) float32: a top_k of K
    tickets: Any  # (rows,) int32, zero between launches
    best: Any  # (beams, K, 3) float64, see `expand_beams_kernel`
    counts: Any  # (beams,) int64: how many of the K
    status: Any  # (rows,) int32


BEAMS_TYPES = Beams("i64", "fp32", "fp32", "i32", "fp64", "i64", "i32")


@triton.jit
def take_part_in_race(array, listed, size, ids, running, largest, block_max, noise):
    """Replaces every score, -inf aside, by how far score + running - ln E lies above largest + running; float32.

    The sums come first, since a running score may swallow what is added to it. Where the array is a whole row, this
    updates its `block_max`. Returns the largest.
    """
    best = tl.full((TILE,), float("-inf"), tl.float32)
    center = (largest + running).to(tl.float64)
    for start in range(0, size, TILE):
        at = start + tl.arange(0, TILE)
        inside = at < size
        score = tl.load(array + at, mask=inside, other=float("-inf"))
        value = score
        if tl.max(score) > float("-inf"):
            log_noise = tl.log(exponentials_of(noise, ids_at(at, ids, listed), inside))
            value = (((score + running).to(tl.float64) - log_noise.to(tl.float64)) - center).to(tl.float32)
            value = tl.where(value > LEAST_VALUE, value, LEAST_VALUE)
            value = tl.where(score > float("-inf"), value, float("-inf"))
            tl.store(array + at, value, mask=inside)
        best = tl.maximum(best, value)
        if listed == 0:
            block = start // BLOCK + tl.arange(0, TILE // BLOCK)
            of_blocks = tl.max(tl.reshape(value, (TILE // BLOCK, BLOCK)), axis=1)
            tl.store(block_max + block, of_blocks, mask=block * BLOCK < size)
    tl.debug_barrier()
    return tl.max(best)


@triton.jit(
    do_not_specialize=[
        "logits_stride", "vocab_size", "history_stride", "length", "bias_stride", "suppress_stride", "suppress_count",
        "bitmask_stride", "modes", "noise_stride", "step", "f32_stride", "i32_stride", "scores_stride", "tokens",
        "num_candidates", "normalized",
    ]
)  # fmt: skip
def expand_beams_kernel(
    logits, tables: RowTables, workspace: Workspace,
    logits_stride: tl.int64, vocab_size: tl.int32, history_stride: tl.int64, length: tl.int32, bias_stride: tl.int64,
    suppress_stride: tl.int64, suppress_count: tl.int32, bitmask_stride: tl.int64, modes: tl.int32,
    noise_stride: tl.int64, step: tl.int32, f32_stride: tl.int64, i32_stride: tl.int64, scores_stride: tl.int64,
    tokens: tl.int32, beams: Beams, num_candidates: tl.int32, normalized: tl.int32, DRAWS: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """Grid (beams, parts): program (beam, part) scans `tokens` tokens, a multiple of SCAN_TILE, of the beam's row.

    Writes the best continuations of a beam by id: score, score, id; with DRAWS -ln E, score, id.
    """
    if PDL:
        gdc_launch_dependents()
    beam = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    parts = tl.num_programs(1)
    row = tl.load(beams.slots + beam)
    if (modes & HISTORY_GROWS) != 0:
        step = tl.load(tables.steps).to(tl.int32)
        length += step
    numbers = Numbers(
        logits_stride, vocab_size, history_stride, length, bias_stride, suppress_stride, suppress_count,
        bitmask_stride, modes, noise_stride, step, f32_stride, i32_stride, scores_stride,
    )  # fmt: skip
    flags = row_flags(tables, row)
    work = row_workspace(workspace.f32, f32_stride, workspace.i32, i32_stride, row, vocab_size)
    scores = row_scores(logits, tables, workspace, work, numbers, row, flags, True)
    noise = Noise(
        given=tables.noise + beam * noise_stride,
        is_given=(modes & NOISE_IS_GIVEN) != 0,
        seed=tl.load(tables.seeds + beam),
        step=step,
    )
    begin = tl.multiple_of(part * tokens, SCAN_TILE)
    end = tl.minimum(begin + tokens, vocab_size)
    if (flags & MARKED) != 0:
        mark_row(tables, workspace, work, numbers, row, flags, begin, end, length)
    if normalized == 0:
        scan(
            plain_scores(scores.logits, work, scores.stored, False), work, noise, begin, end, vocab_size, part, 1.0,
            True, False, False,
        )  # fmt: skip
    tl.debug_barrier()

    if tl.atomic_add(beams.tickets + row, 1, sem="acq_rel") == parts - 1:
        tl.debug_barrier()
        tl.store(beams.tickets + row, parts * 0)
        tl.store(workspace.marks + row, parts * 0)
        blocks = (vocab_size + BLOCK - 1) // BLOCK
        temperature = tl.load(tables.knobs + row * NUM_FLOAT_KNOBS + TEMPERATURE)
        running = tl.load(beams.running_scores + beam)
        row_status = parts * 0
        largest = row_status.to(tl.float32)
        log_sum = largest
        if normalized == 0:
            largest, nan = row_facts(work.block_max, blocks, work.part_nan, parts)
            row_status = status_of(largest, nan)
            log_sum = tl.log(mass_of_row(work, blocks, 1.0, largest)).to(tl.float32)
            tl.debug_barrier()
        found = parts * 0
        if row_status == 0:
            largest_logit = largest
            added = tl.where(running == float("-inf"), 0.0, running)
            if DRAWS:
                # Filters go by the scores alone.
                added = added * 0.0
            scan(
                scores, work, noise, 0, vocab_size, vocab_size, 0, temperature, (flags & NUCLEUS) != 0, False, True,
                largest_logit, log_sum, added,
            )  # fmt: skip
            tl.debug_barrier()
            largest, nan = row_facts(work.block_max, blocks, work.part_nan, 1)
            row_status = status_of(largest, nan)
            if DRAWS:
                temperature = fitting_temperature(temperature, largest)
            if (row_status == 0) & (running > float("-inf")):
                largest = tl.math.div_rn(largest, temperature)
                listed = parts * 0
                size = vocab_size
                if DRAWS:
                    filters = row_filters(tables.knobs, tables.int_knobs, row, flags)
                    listed, size, total_mass = gather_or_fill(scores, work, filters, vocab_size, temperature, largest)
                    array = scores.stored
                    if listed > 0:
                        array = work.list_scores
                    if filters.flags != 0:
                        array, listed, size, largest = apply_filters(
                            array, listed, size, filters, largest, total_mass, work
                        )
                    largest = take_part_in_race(
                        array, listed, size, work.list_ids, running, largest, work.block_max, noise
                    )
                if listed == 0:
                    # By value, the K best are those of a top_k.
                    candidates = Filters(
                        flags=parts * 0 + TOP_K_ACTS, knobs=beams.candidate_knobs, min_tokens_to_keep=1
                    )
                    listed, size, _mass = gather_or_fill(scores, work, candidates, vocab_size, 1.0, largest)
                values = scores.stored
                if listed > 0:
                    values = work.list_scores
                cut, above = cut_of(values, size, num_candidates.to(tl.float64), False, False, largest, 0.0)
                if cut != LEAST_KEY:
                    keep_from(values, size, cut, num_candidates - above.to(tl.int32), False, False, 0.0)
                for start in range(0, size, TILE):
                    at = start + tl.arange(0, TILE)
                    taken = tl.load(values + at, mask=at < size, other=float("-inf")) > float("-inf")
                    if tl.max(taken.to(tl.int32)) != 0:
                        token = ids_at(at, work.list_ids, listed)
                        score = scores_of(scores, token, taken, largest_logit, log_sum)
                        total = tl.math.div_rn(score, temperature) + running
                        value = total.to(tl.float64)
                        if DRAWS:
                            # Without the score: beside a large one float64 may not hold it.
                            value = -tl.log(exponentials_of(noise, token, taken)).to(tl.float64)
                        index = beam * num_candidates + found + tl.cumsum(taken.to(tl.int32), axis=0) - 1
                        tl.store(beams.best + index * 3, value, mask=taken)
                        tl.store(beams.best + index * 3 + 1, total.to(tl.float64), mask=taken)
                        tl.store(beams.best + index * 3 + 2, token.to(tl.float64), mask=taken)
                        found += tl.sum(taken.to(tl.int32))
        tl.store(beams.status + row, row_status)
        tl.store(beams.counts + beam, found.to(tl.int64))


def prepare(call: BeamCall, work: BeamWorkspace) -> Callable[[Tensor, int, int, int], None]:
    """The launches of a checked call: `run(logits, step, length, halves)`.

    torch's noise is written to memory first, in a launch of torch's own.
    """
    state, like = call.state, call.shaping.like
    rows, vocab_size, device = like.rows, like.vocab_size, like.device
    if call.noise.advances_generator and state.generator_state is not None:
        raise BackendError("`beam_step`: backend 'triton' cannot take torch's noise from `state.generator_state`")
    shaping = call.shaping
    if not call.noise.draws:
        shaping = shaping.unfiltered()
    noise, refill = given_by_torch(call.noise, like)
    scores = torch.empty((rows, vocab_size), dtype=torch.float32, device=device)
    of_rows = arguments.RowArguments(shaping, noise, scores, modes=0, races=False)
    small = vocab_size <= arguments.SMALL_VOCABULARY
    parts, tokens = (1, vocab_size) if small else arguments.parts_of_rows(rows, vocab_size, device)
    best = work.best_of_row.view(torch.float64)
    beams = Beams(
        slots=state.slots,
        running_scores=state.running_scores,
        candidate_knobs=torch.full((TOP_K.value + 1,), float(state.num_candidates), device=device),
        tickets=torch.zeros(rows, dtype=torch.int32, device=device),
        best=best,
        counts=work.count_of_row,
        status=call.out.status,
    )
    update = prepare_update(call, work, best)
    draws, normalized = call.noise.draws, int(call.normalized)

    def run(logits: Tensor, step: int, length: int, halves: int) -> None:
        if halves & SELECT.value:
            refill()
            row_arguments = of_rows.of_call(logits.detach(), step, length)
            launch(
                expand_beams_kernel, (rows, parts), *row_arguments, tokens, beams, state.num_candidates, normalized,
                num_warps=_NUM_WARPS, max_registers=_registers(draws), DRAWS=draws,
            )  # fmt: skip
        update(step, halves)

    return run


def _registers(draws: bool) -> int | None:
    return _REGISTERS_OF_DRAWS if draws else None


def specializations() -> list[Specialization]:
    types = {"tables": ROW_TABLES_TYPES, "workspace": WORKSPACE_TYPES, "beams": BEAMS_TYPES}
    return [
        Specialization(
            f"beams {dtype}{' drawn' if draws else ''}",
            expand_beams_kernel,
            signature_of(expand_beams_kernel, {**types, "logits": dtype}),
            {"DRAWS": draws},
            _NUM_WARPS,
            _registers(draws),
        )
        for dtype in ("fp32", "fp16", "bf16")
        for draws in (False, True)
    ] + [update_specialization()]
