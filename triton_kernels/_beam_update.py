"""The second launch of `beam_step`, a program per prompt: the K best continuations of its beams, and from them the new
finished hypotheses, running beams and rows."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from pygen.triton_kernels._beam_candidates import CANDIDATES_TYPES, Candidates, merge_candidates
from pygen.triton_kernels._beam_hypotheses import (
    NEVER_WINS,
    Finished,
    find_ended,
    num_finished,
    update_finished,
    update_running,
)
from pygen.triton_kernels._beam_rows import copy_histories, find_rows, share_histories, stay
from pygen.triton_kernels._select import LANES, TILE
from pygen.triton_kernels._specialization import Specialization, launch, signature_of
from torch import Tensor
from triton.language.extra.cuda import gdc_wait

from pygen.ops._beam_call import BeamCall, BeamWorkspace

# Bits of `modes`; the first two are the `halves` of pygen.ops.beam_step.
SELECT = tl.constexpr(1)
ADVANCE = tl.constexpr(2)
_DRAWS = tl.constexpr(4)
_SORTS_DRAWS = tl.constexpr(8)
_STOPS_WHEN_FULL = tl.constexpr(16)
_HAS_STEPS = tl.constexpr(32)
_HAS_LIMIT = tl.constexpr(64)
_HAS_HISTORY = tl.constexpr(128)

# What the prompts tell the last program.
_ALL_ENDED = tl.constexpr(1)
_ALL_FINISHED = tl.constexpr(2)
_OPEN = tl.constexpr(4)

_ALL_MASKED = tl.constexpr(2)  # of RowStatus
_NUM_WARPS = 8


class State(NamedTuple):
    """The tensors of a BeamState, `none` where it has None; pointers."""

    token_ids: Any
    history: Any
    slots: Any
    shared: Any
    running_scores: Any
    step_tokens: Any
    step_parents: Any
    finished_scores: Any
    finished: Any
    finished_steps: Any
    finished_tokens: Any
    finished_parents: Any
    open: Any
    unfinished: Any
    steps: Any
    limit: Any
    eos_token_ids: Any


class UpdateWorkspace(NamedTuple):
    """What the first launch hands over, and scratch; pointers."""

    best: Any  # (beams, K, 3) float64
    counts: Any  # (beams,) int64
    f32: Any  # (prompts, n * K + n)
    f64: Any  # (prompts, n * K + n)
    i64: Any  # (prompts, `_i64_words`)
    prompt_facts: Any  # (prompts,) int32
    ticket: Any  # (1,) int32, zero between launches


class Outputs(NamedTuple):
    """The tensors of a BeamStepOutput; pointers."""

    token_ids: Any
    source_rows: Any
    shared: Any
    status: Any


def _i64_words(n: int, count: int) -> int:
    """int64 words of scratch that a prompt needs; the order is that of the kernel."""
    return count + 6 * n + max(4 * (n + count), n * count)


@triton.jit(
    do_not_specialize=[
        "i64_stride", "num_beams", "num_candidates", "modes", "step", "max_new_tokens", "eos_count", "pad_token_id",
        "token_ids_stride", "history_stride", "prompt_length",
    ]
)  # fmt: skip
def update_beams_kernel(
    normalisers, state: State, workspace: UpdateWorkspace, candidates: Candidates, out: Outputs,
    i64_stride: tl.int64, num_beams: tl.int32, num_candidates: tl.int32, modes: tl.int32, step: tl.int64,
    max_new_tokens: tl.int64, eos_count: tl.int32, pad_token_id: tl.int64,
    token_ids_stride: tl.int64, history_stride: tl.int64, prompt_length: tl.int64,
    PDL: tl.constexpr,
):  # fmt: skip
    """Grid (prompts,). SELECT merges the candidates, ADVANCE updates the state with them.

    normalisers: (2, max_new_tokens) float32, by step.
    """
    if PDL:
        gdc_wait()
    prompt = tl.program_id(0).to(tl.int64)
    prompts = tl.num_programs(0)
    first = prompt * num_beams
    is_over = (modes & _HAS_STEPS) != 0
    if is_over:
        step = tl.load(state.steps)
        is_over = tl.load(state.unfinished) == 0
    if is_over:
        fed = state.token_ids + prompt_length + step - 1
        stay(fed, token_ids_stride, first, num_beams, step, out.token_ids, out.source_rows, out.shared, out.status)
        return
    # Every array of a prompt starts at its share of the workspace.
    size = num_beams * num_candidates + num_beams
    keys = workspace.f32 + prompt * size
    scratch = workspace.i64 + prompt * i64_stride
    start_of_prompt = prompt * num_candidates
    candidates = Candidates(
        candidates.ids + start_of_prompt, candidates.parents + start_of_prompt, candidates.scores + start_of_prompt,
        candidates.ends + start_of_prompt,
    )  # fmt: skip
    if (modes & SELECT) != 0:
        merge_candidates(
            workspace.best + first * num_candidates * 3, workspace.counts + first, num_beams, num_candidates,
            (modes & _DRAWS) != 0, (modes & _SORTS_DRAWS) != 0, keys, scratch, workspace.f64 + prompt * size,
            candidates,
        )  # fmt: skip
    if (modes & ADVANCE) != 0:
        ended = scratch
        parents = ended + num_candidates
        wanted = parents + num_beams
        rows = wanted + num_beams
        free = rows + num_beams
        sources = free + num_beams
        common = sources + num_beams
        pool = common + num_beams
        slots = state.slots + first
        running_scores = state.running_scores + first
        shared = state.shared + first * num_beams
        finished = Finished(
            state.finished_scores + first, state.finished + first, state.finished_steps + first,
            state.finished_tokens + first, state.finished_parents + first,
        )  # fmt: skip
        all_rows = prompts.to(tl.int64) * num_beams
        step_tokens = state.step_tokens + step * all_rows + first
        stops_when_full = (modes & _STOPS_WHEN_FULL) != 0
        has_history = (modes & _HAS_HISTORY) != 0

        end = max_new_tokens
        if (modes & _HAS_LIMIT) != 0:
            end = tl.load(state.limit)
        was_open = tl.load(state.open + prompt) != 0
        is_full = stops_when_full & (num_finished(finished, num_beams) == num_beams)
        all_ended = find_ended(candidates, num_candidates, step + 1 == end, state.eos_token_ids, eos_count, ended)
        update_finished(
            finished, first, candidates, ended, num_beams, num_candidates, step, tl.load(normalisers + step),
            is_full, was_open == 0, keys, pool,
        )  # fmt: skip
        update_running(
            running_scores, step_tokens, state.step_parents + step * all_rows + first, first, candidates, ended,
            num_beams, num_candidates, pad_token_id, keys, parents,
        )  # fmt: skip

        attainable = tl.math.div_rn(tl.load(running_scores), tl.load(normalisers + max_new_tokens + step))
        found = num_finished(finished, num_beams)
        worst = tl.load(finished.scores + num_beams - 1)
        improves = ((found > 0) & (attainable > worst)) | ((found < num_beams) & (attainable > NEVER_WINS))
        stays_open = was_open & improves

        find_rows(slots, shared, first, num_beams, step, parents, wanted, rows, free, sources, common)
        share_histories(shared, num_beams, step, sources)
        token_ids = state.token_ids + first * token_ids_stride + prompt_length
        history = state.history + first * history_stride + prompt_length
        copy_histories(token_ids, token_ids_stride, num_beams, step, sources, common)
        if has_history:
            copy_histories(history, history_stride, num_beams, step, sources, common)
        stuck = (tl.load(candidates.ids) < 0) & (found == 0)
        for start in range(0, num_beams, LANES):
            at = start + tl.arange(0, LANES)
            inside = at < num_beams
            row = tl.load(rows + at, mask=inside, other=0)
            token = tl.load(step_tokens + at, mask=inside, other=0)
            tl.store(slots + at, first + row, mask=inside)
            tl.store(token_ids + row * token_ids_stride + step, token, mask=inside)
            if has_history:
                tl.store(history + row * history_stride + step, token, mask=inside)
            tl.store(out.token_ids + first + row, token, mask=inside)
            tl.store(out.source_rows + first + at, first + tl.load(sources + at, mask=inside, other=0), mask=inside)
            tl.store(out.shared + first + at, tl.load(common + at, mask=inside, other=0), mask=inside)
            of_row = tl.load(out.status + first + at, mask=inside, other=0)
            silent = (was_open == 0) | ((of_row == _ALL_MASKED) & (stuck == 0))
            tl.store(out.status + first + at, tl.where(silent, 0, of_row), mask=inside)
        tl.store(state.open + prompt, stays_open.to(tl.uint8))

        facts = tl.where(all_ended, _ALL_ENDED, 0) | tl.where(found == num_beams, _ALL_FINISHED, 0)
        facts = facts | tl.where(stays_open, _OPEN, 0)
        tl.store(workspace.prompt_facts + prompt, facts)
        tl.debug_barrier()
        # The last program to finish counts.
        if tl.atomic_add(workspace.ticket, 1, sem="acq_rel") == prompts - 1:
            tl.debug_barrier()
            all_facts = prompts * 0 + (_ALL_ENDED | _ALL_FINISHED)
            num_open = prompts * 0
            for start in range(0, prompts, TILE):
                at = start + tl.arange(0, TILE)
                of_prompt = tl.load(workspace.prompt_facts + at, mask=at < prompts, other=_ALL_ENDED | _ALL_FINISHED)
                all_facts = all_facts & tl.min(tl.where((of_prompt & _ALL_ENDED) != 0, -1, ~_ALL_ENDED))
                all_facts = all_facts & tl.min(tl.where((of_prompt & _ALL_FINISHED) != 0, -1, ~_ALL_FINISHED))
                num_open += tl.sum((of_prompt & _OPEN) // _OPEN)
            over = (all_facts & _ALL_ENDED) != 0
            over = over | (stops_when_full & ((all_facts & _ALL_FINISHED) != 0))
            tl.store(state.unfinished, tl.where(over, 0, num_open).to(tl.int64))
            tl.store(workspace.ticket, prompts * 0)
            if (modes & _HAS_STEPS) != 0:
                # Every program has read the step.
                for start in range(0, prompts * num_beams, TILE):
                    at = start + tl.arange(0, TILE)
                    inside = at < prompts * num_beams
                    tl.store(state.steps + at, tl.load(state.steps + at, mask=inside, other=0) + 1, mask=inside)


def prepare_update(call: BeamCall, work: BeamWorkspace, best: Tensor) -> Callable[[int, int], None]:
    """`update(step, halves)`: the launch over prompts. best: (beams, K, 3) float64, see `merge_candidates`."""
    state, out = call.state, call.out
    n, count, prompts, device = state.num_beams, state.num_candidates, state.batch_size, state.token_ids.device
    none = torch.zeros(0, dtype=torch.int64, device=device)
    eos_token_ids, steps, limit = (
        none if tensor is None else tensor for tensor in (state.eos_token_ids, state.steps, state.limit)
    )
    words = _i64_words(n, count)
    pointers = (
        call.normalisers,
        State(
            state.token_ids, state.history, state.slots, state.shared, state.running_scores, state.step_tokens,
            state.step_parents, state.finished_scores, state.finished.view(torch.uint8), state.finished_steps,
            state.finished_tokens, state.finished_parents, state.open.view(torch.uint8), state.unfinished,
            steps, limit, eos_token_ids,
        ),
        UpdateWorkspace(
            best, work.count_of_row,
            torch.empty(prompts * (n * count + n), dtype=torch.float32, device=device),
            torch.empty(prompts * (n * count + n), dtype=torch.float64, device=device),
            torch.empty(prompts * words, dtype=torch.int64, device=device),
            torch.empty(prompts, dtype=torch.int32, device=device),
            torch.zeros(1, dtype=torch.int32, device=device),
        ),
        Candidates(work.candidate_ids, work.candidate_parents, work.candidate_scores, work.ends.view(torch.uint8)),
        Outputs(out.token_ids, out.source_rows, out.shared, out.status),
    )  # fmt: skip
    modes = 0
    for bit, holds in (
        (_DRAWS, call.noise.draws),
        (_SORTS_DRAWS, call.sorts_draws),
        (_STOPS_WHEN_FULL, call.stops_when_full),
        (_HAS_STEPS, state.steps is not None),
        (_HAS_LIMIT, state.limit is not None),
        (_HAS_HISTORY, state.history is not state.token_ids),
    ):
        modes |= bit.value if holds else 0
    numbers = (
        state.max_new_tokens, len(eos_token_ids), state.pad_token_id, state.token_ids.stride(0),
        state.history.stride(0), state.prompt_length,
    )  # fmt: skip

    def update(step: int, halves: int) -> None:
        launch(
            update_beams_kernel, (prompts,), *pointers, words, n, count, modes | halves, step, *numbers,
            num_warps=_NUM_WARPS, dependent=True,
        )  # fmt: skip

    return update


def update_specialization() -> Specialization:
    types = {
        "normalisers": "fp32",
        "state": State(
            "i64", "i64", "i64", "i32", "fp32", "i64", "i32", "fp32", "u8", "i64", "i64", "i32", "u8", "i64",
            "i64", "i64", "i64",
        ),
        "workspace": UpdateWorkspace("fp64", "i64", "fp32", "fp64", "i64", "i32", "i32"),
        "candidates": CANDIDATES_TYPES,
        "out": Outputs("i64", "i64", "i64", "i32"),
    }  # fmt: skip
    signature = signature_of(update_beams_kernel, types)
    return Specialization("prompts", update_beams_kernel, signature, {}, _NUM_WARPS, dependent=True)
