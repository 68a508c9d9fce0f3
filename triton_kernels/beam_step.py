"""beam_step: two launches. In the first every beam finds its K best continuations, in the second every prompt merges
those of its beams and moves on (`_beam_update.py`).

The programs of a row share its log-sum-exp: each scans a part of the logits, and the last to leave goes on alone. It
writes the scores down, with the maxima of their blocks, and takes from them what can be among the K best.
"""

import dataclasses
from collections.abc import Callable

import torch
import triton
import triton.language as tl
from pygen.triton_kernels import _arguments as arguments
from pygen.triton_kernels._beam_update import SELECT, update_beams_kernel
from pygen.triton_kernels._draw import ids_at
from pygen.triton_kernels._filters import TOP_K, TOP_K_ACTS, apply_filters
from pygen.triton_kernels._philox import TARGET_DRAWS, exponential_of, noise_words
from pygen.triton_kernels._rows import (
    COUNTED,
    FILTERED,
    FLAGS,
    HISTORY_GROWS,
    MARKED,
    MIN_TOKENS_TO_KEEP,
    NGRAM_SIZE,
    NOISE_GIVEN,
    NUCLEUS,
    PENALIZED,
    PROMPT_LENGTH,
    TEMPERATURE,
    integers_of,
    penalties_of,
    reals_of,
)
from pygen.triton_kernels._scan import BLOCK, SCAN_TILE, scan
from pygen.triton_kernels._scores import mark_tokens, scores_of
from pygen.triton_kernels._select import TILE, cut_of, keep_from
from pygen.triton_kernels._specialization import Specialization, launch, signature_of
from pygen.triton_kernels._survivors import fitting_temperature, gather_or_fill, mass_of_row, row_facts, status_of
from torch import Tensor

from pygen.backends import BackendError
from pygen.ops._noise import given_by_torch

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pygen.ops.beam_step import _Call, _Workspace

_LEAST_KEY = tl.constexpr(-(2**31))
_LEAST_VALUE = tl.constexpr(-3.4028234663852886e38)

_NUM_WARPS = 8
_REGISTERS_OF_DRAWS = 255
_UPDATE_WARPS = 8


@triton.jit
def log_noise_of(token, inside, noise, noise_is_given, seed, step):
    """ln E of tokens."""
    if noise_is_given:
        exponential = tl.load(noise + token, mask=inside, other=1.0)
    else:
        exponential = exponential_of(noise_words(seed, step, token, TARGET_DRAWS))
    return tl.log(exponential)


@triton.jit
def take_part_in_race(
    array, listed, size, ids, running, largest, block_max, noise, noise_is_given, seed, step
):  # fmt: skip
    """Puts in place of every score, -inf aside, how far score + running - ln E lies above largest + running; float32.

    The sums are made first, since a running score may swallow what is added to it. block_max: is made anew for a whole
    row. Returns the largest.
    """
    best = tl.full((TILE,), float("-inf"), tl.float32)
    center = (largest + running).to(tl.float64)
    for start in range(0, size, TILE):
        at = start + tl.arange(0, TILE)
        inside = at < size
        score = tl.load(array + at, mask=inside, other=float("-inf"))
        value = score
        if tl.max(score) > float("-inf"):
            token = ids_at(at, ids, listed)
            log_noise = log_noise_of(token, inside, noise, noise_is_given, seed, step)
            value = (((score + running).to(tl.float64) - log_noise.to(tl.float64)) - center).to(tl.float32)
            value = tl.where(value > _LEAST_VALUE, value, _LEAST_VALUE)
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
        "logits_stride", "vocab_size", "rows", "history_stride", "length", "bias_stride", "suppress_stride",
        "suppress_count", "bitmask_stride", "tables", "modes", "noise_stride", "step", "reals_stride",
        "integers_stride", "stored_stride", "parts", "tokens", "count", "normalized",
    ]
)  # fmt: skip
def expand_beams_kernel(
    logits, logits_stride: tl.int64, vocab_size: tl.int32, rows: tl.int64, knobs, counters,
    history, history_stride: tl.int64, length: tl.int32, bias, bias_stride: tl.int64,
    suppress, suppress_stride: tl.int64, suppress_count: tl.int32, bitmask, bitmask_stride: tl.int64,
    tables: tl.int32, modes: tl.int32, noise, noise_stride: tl.int64, seeds, steps, step: tl.int32,
    reals, reals_stride: tl.int64, integers, integers_stride: tl.int64, stored, stored_stride: tl.int64,
    parts: tl.int32, tokens: tl.int32, slots, running_scores, status, tickets,
    candidate_knobs, count: tl.int32, normalized: tl.int32, best, counts_of_beams, DRAWS: tl.constexpr,
):  # fmt: skip
    """Grid (beams, parts): program (beam, part) scans `tokens` tokens, a multiple of SCAN_TILE, of the beam's row.

    best: (beams, count, 3) float64, score, or in draws -ln E, score and id of the beam's best continuations, by id; how
    many: by beam.
    """
    beam = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    row = tl.load(slots + beam)
    rows = rows.to(tl.int64)
    flags = tl.load(counters + FLAGS * rows + row)
    counted = (flags & COUNTED) != 0
    marked = (flags & MARKED) != 0
    repetition, presence, frequency = penalties_of(knobs, row, rows)
    block_max, block_sum, part_value, room, list_scores = reals_of(reals, row, reals_stride, vocab_size)
    seen, banned, part_id, part_nan, list_ids, block_list, counts = integers_of(
        integers, row, integers_stride, vocab_size
    )
    logits += row * logits_stride
    bias += row * bias_stride
    bitmask += row * bitmask_stride
    stored += row * stored_stride
    noise += beam * noise_stride
    begin = tl.multiple_of(part * tokens, SCAN_TILE)
    end = tl.minimum(begin + tokens, vocab_size)
    if (modes & HISTORY_GROWS) != 0:
        step = tl.load(steps).to(tl.int32)
        length += step
    if marked:
        mark_tokens(
            seen, banned, counts, begin, end, vocab_size,
            history + row * history_stride, length, tl.load(counters + PROMPT_LENGTH * rows + row),
            tl.load(counters + NGRAM_SIZE * rows + row), (flags & PENALIZED) != 0, counted,
            suppress + row * suppress_stride, suppress_count, tables,
        )  # fmt: skip
    if normalized == 0:
        scan(
            begin, end, vocab_size, part, 1.0, block_max, block_sum, True,
            part_value, part_id, part_nan, False, noise, False, 0, step, stored, False,
            logits, bias, bitmask, seen, banned, counts, tables & 0, False, False, 1.0, 0.0, 0.0,
        )  # fmt: skip
    tl.debug_barrier()

    if tl.atomic_add(tickets + row, 1, sem="acq_rel") == parts - 1:
        tl.debug_barrier()
        tl.store(tickets + row, parts * 0)
        blocks = (vocab_size + BLOCK - 1) // BLOCK
        temperature = tl.load(knobs + TEMPERATURE * rows + row)
        running = tl.load(running_scores + beam)
        row_status = parts * 0
        largest = row_status.to(tl.float32)
        log_sum = largest
        if normalized == 0:
            largest, nan = row_facts(block_max, blocks, part_nan, parts)
            row_status = status_of(largest, nan)
            log_sum = tl.log(mass_of_row(block_max, block_sum, blocks, 1.0, largest)).to(tl.float32)
            tl.debug_barrier()
        found = parts * 0
        if row_status == 0:
            largest_logit = largest
            added = tl.where(running == float("-inf"), 0.0, running)
            if DRAWS:
                # Filters go by the scores alone.
                added = added * 0.0
            scan(
                0, vocab_size, vocab_size, 0, temperature, block_max, block_sum, (flags & NUCLEUS) != 0,
                part_value, part_id, part_nan, False, noise, False, 0, step, stored, True,
                logits, bias, bitmask, seen, banned, counts, tables, marked, counted, repetition, presence, frequency,
                largest_logit, log_sum, added,
            )  # fmt: skip
            tl.debug_barrier()
            largest, nan = row_facts(block_max, blocks, part_nan, 1)
            row_status = status_of(largest, nan)
            if DRAWS:
                temperature = fitting_temperature(temperature, largest)
            if (row_status == 0) & (running > float("-inf")):
                largest = tl.math.div_rn(largest, temperature)
                min_tokens_to_keep = tl.load(counters + MIN_TOKENS_TO_KEEP * rows + row)
                listed = parts * 0
                size = vocab_size
                if DRAWS:
                    listed, size, total_mass = gather_or_fill(
                        flags & FILTERED, knobs + row, rows, min_tokens_to_keep, temperature, largest,
                        vocab_size, block_max, block_sum, block_list, list_scores, list_ids, stored, True,
                        logits, bias, bitmask, seen, banned, counts, tables, marked, counted,
                        repetition, presence, frequency,
                    )  # fmt: skip
                    array = stored
                    if listed > 0:
                        array = list_scores
                    if (flags & FILTERED) != 0:
                        largest = apply_filters(
                            array, size, knobs + row, rows, flags & FILTERED, min_tokens_to_keep,
                            largest, total_mass, room,
                        )  # fmt: skip
                    largest = take_part_in_race(
                        array, listed, size, list_ids, running, largest, block_max,
                        noise, (modes & NOISE_GIVEN) != 0, tl.load(seeds + beam), step,
                    )  # fmt: skip
                if listed == 0:
                    listed, size, _mass = gather_or_fill(
                        parts * 0 + TOP_K_ACTS, candidate_knobs, 1, 1, 1.0, largest,
                        vocab_size, block_max, block_sum, block_list, list_scores, list_ids, stored, True,
                        logits, bias, bitmask, seen, banned, counts, tables, marked, counted,
                        repetition, presence, frequency,
                    )  # fmt: skip
                values = stored
                if listed > 0:
                    values = list_scores
                cut, above = cut_of(values, size, count.to(tl.float64), False, False, largest, 0.0)
                if cut != _LEAST_KEY:
                    keep_from(values, size, cut, count - above.to(tl.int32), False, False, 0.0)
                for start in range(0, size, TILE):
                    at = start + tl.arange(0, TILE)
                    taken = tl.load(values + at, mask=at < size, other=float("-inf")) > float("-inf")
                    if tl.max(taken.to(tl.int32)) != 0:
                        token = ids_at(at, list_ids, listed)
                        score = scores_of(
                            logits, token, taken, bias, bitmask, seen, banned, counts,
                            tables, marked, counted, repetition, presence, frequency, largest_logit, log_sum,
                        )  # fmt: skip
                        total = tl.math.div_rn(score, temperature) + running
                        value = total.to(tl.float64)
                        if DRAWS:
                            log_noise = log_noise_of(
                                token, taken, noise, (modes & NOISE_GIVEN) != 0, tl.load(seeds + beam), step
                            )
                            # Alone: beside a large sum float64 may not hold it.
                            value = -log_noise.to(tl.float64)
                        place = best + (beam * count + found + tl.cumsum(taken.to(tl.int32), axis=0) - 1) * 3
                        tl.store(place, value, mask=taken)
                        tl.store(place + 1, total.to(tl.float64), mask=taken)
                        tl.store(place + 2, token.to(tl.float64), mask=taken)
                        found += tl.sum(taken.to(tl.int32))
        tl.store(status + row, row_status)
        tl.store(counts_of_beams + beam, found.to(tl.int64))


def prepare(call: "_Call", work: "_Workspace") -> Callable[[Tensor, int, int, int], None]:
    """The launches of a checked call: `run(logits, step, length, halves)`. torch's noise is written to memory first, in
    a launch of torch's own."""
    state, like = call.state, call.shaping.like
    rows, vocab_size, device = like.rows, like.vocab_size, like.device
    if call.noise.advances_generator and state.generator_state is not None:
        raise BackendError("`beam_step`: backend 'triton' cannot take torch's noise from `state.generator_state`")
    shaping = call.shaping
    if not call.noise.draws:
        shaping = dataclasses.replace(
            shaping, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, typical_p=1.0,
            epsilon_cutoff=0.0, eta_cutoff=0.0, top_h=0.0,
        )  # fmt: skip
    noise, refill = given_by_torch(call.noise, like)
    stored = torch.empty((rows, vocab_size), dtype=torch.float32, device=device)
    of_rows = arguments.RowArguments(shaping, noise, stored, modes=0, races=False)
    small = vocab_size <= arguments.SMALL_VOCABULARY
    parts, tokens = (1, vocab_size) if small else arguments.parts_of_rows(rows, vocab_size, device)
    # The K best by value are, to begin with, those of a top_k.
    candidate_knobs = torch.full((TOP_K.value + 1,), float(state.num_candidates), device=device)
    best = work.best_of_row.view(torch.float64)
    expansion = (
        parts, tokens, state.slots, state.running_scores, call.out.status,
        torch.zeros(rows, dtype=torch.int32, device=device), candidate_knobs, state.num_candidates,
        int(call.normalized), best, work.count_of_row,
    )  # fmt: skip
    update = _prepare_update(call, work, best)

    def run(logits: Tensor, step: int, length: int, halves: int) -> None:
        if halves & SELECT.value:
            refill()
            row_arguments = of_rows.of_call(logits.detach(), step, length)
            launch(
                expand_beams_kernel, (rows, parts), *row_arguments, *expansion,
                num_warps=_NUM_WARPS, max_registers=_registers(call.noise.draws), DRAWS=call.noise.draws,
            )  # fmt: skip
        update(step, halves)

    return run


def _registers(draws: bool) -> int | None:
    return _REGISTERS_OF_DRAWS if draws else None


def _prepare_update(call: "_Call", work: "_Workspace", best: Tensor) -> Callable[[int, int], None]:
    """`update(step, halves)`: the launch over prompts. best: (rows, K, 3) float64, see `merge_candidates`."""
    state, out = call.state, call.out
    n, count, prompts, device = state.num_beams, state.num_candidates, state.batch_size, state.token_ids.device
    size = n * count + n
    integers_room = 6 * n + count + 4 * (n + count) + n * count
    has_history = state.history is not state.token_ids
    none = torch.zeros(0, dtype=torch.int64, device=device)
    eos, steps, limit = (
        none if tensor is None else tensor for tensor in (state.eos_token_ids, state.steps, state.limit)
    )
    workspace = (
        best, work.count_of_row, torch.empty(prompts * size, dtype=torch.float32, device=device),
        torch.empty(prompts * size, dtype=torch.float64, device=device),
        torch.empty(prompts * integers_room, dtype=torch.int64, device=device), integers_room,
        torch.empty(prompts, dtype=torch.int32, device=device), torch.zeros(1, dtype=torch.int32, device=device),
        work.candidate_ids, work.candidate_parents, work.candidate_scores, work.ends.view(torch.uint8),
        n, count, prompts, int(call.noise.draws),
    )  # fmt: skip
    settings = (
        steps, int(state.steps is not None), limit, int(state.limit is not None), state.max_new_tokens,
        call.normalisers, int(call.stops_when_full), int(call.sorts_draws),
    )  # fmt: skip
    tables = (
        eos, len(eos), state.pad_token_id,
        state.token_ids, state.token_ids.stride(0), state.history, state.history.stride(0), int(has_history),
        state.prompt_length, state.slots, state.shared, state.running_scores, state.step_tokens, state.step_parents,
        state.finished_scores, state.finished.view(torch.uint8), state.finished_steps, state.finished_tokens,
        state.finished_parents, state.open.view(torch.uint8), state.unfinished,
        out.token_ids, out.source_rows, out.shared, out.status,
    )  # fmt: skip

    def update(step: int, halves: int) -> None:
        launch(
            update_beams_kernel, (prompts,), *workspace, step, *settings, halves, *tables, num_warps=_UPDATE_WARPS
        )  # fmt: skip

    return update


def specializations() -> list[Specialization]:
    pointers = {
        "knobs": "fp32", "counters": "i32", "history": "i64", "bias": "fp32", "suppress": "i64", "bitmask": "i32",
        "noise": "fp32", "seeds": "i64", "steps": "i64", "reals": "fp32", "integers": "i32", "stored": "fp32",
        "slots": "i64", "running_scores": "fp32", "status": "i32", "tickets": "i32", "candidate_knobs": "fp32",
        "best": "fp64", "counts_of_beams": "i64",
    }  # fmt: skip
    return [
        Specialization(
            f"beams {dtype}{' drawn' if draws else ''}",
            expand_beams_kernel,
            signature_of(expand_beams_kernel, {**pointers, "logits": dtype}),
            {"DRAWS": draws},
            _NUM_WARPS,
            _registers(draws),
        )
        for dtype in ("fp32", "fp16", "bf16")
        for draws in (False, True)
    ] + [_update_specialization()]


def _update_specialization() -> Specialization:
    of_type = {
        "fp32": "floats candidate_scores normalisers running_scores finished_scores",
        "fp64": "best doubles",
        "i32": "prompt_facts ticket shared step_parents finished_parents status",
        "u8": "ends finished is_open",
        "i64": (
            "counts integers candidate_ids candidate_parents steps limit eos append history slots step_tokens "
            "finished_steps finished_tokens unfinished token_ids source_rows shared_out"
        ),
    }
    pointers = {name: kind for kind, names in of_type.items() for name in names.split()}
    return Specialization(
        "prompts", update_beams_kernel, signature_of(update_beams_kernel, pointers), {}, _UPDATE_WARPS
    )
