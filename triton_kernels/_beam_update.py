"""The second launch of `beam_step`, a program per prompt: the K best continuations of its beams, and what they make of
the finished hypotheses, the running beams and the rows that hold them."""

import triton
import triton.language as tl
from pygen.triton_kernels._beam_rows import LANES, copy_histories, find_rows, share_histories, stay
from pygen.triton_kernels._select import TILE, cut_of, ordered_key

from pygen.ops._beam_state import NEVER_WINS

# Bits of `halves`, as in pygen.ops.beam_step.
SELECT = tl.constexpr(1)
ADVANCE = tl.constexpr(2)

_LEAST_KEY = tl.constexpr(-(2**31))
_NEVER_WINS = tl.constexpr(NEVER_WINS)
_LEAST_VALUE = tl.constexpr(-3.4028234663852886e38)
_ALL_ENDED = tl.constexpr(1)
_ALL_FINISHED = tl.constexpr(2)
_OPEN = tl.constexpr(4)
_ALL_MASKED = tl.constexpr(2)


@triton.jit
def rank_of(keys, size, at, key):
    """How many of keys[:size] come before each `key` at place `at`: larger ones, and equal ones that stand earlier."""
    rank = tl.zeros((LANES,), tl.int32)
    for start in range(0, size, LANES):
        place = start + tl.arange(0, LANES)
        other = tl.load(keys + place, mask=place < size, other=float("-inf"))
        earlier = (other[None, :] == key[:, None]) & (place[None, :] < at[:, None])
        before = ((other[None, :] > key[:, None]) | earlier) & (place < size)[None, :]
        rank += tl.sum(before.to(tl.int32), axis=1)
    return rank


@triton.jit
def merge_candidates(
    best, counts, num_beams, count, draws, sorts_draws, rounded, chosen, chosen_values,
    candidate_ids, candidate_parents, candidate_scores,
):  # fmt: skip
    """The `count` best continuations, best first, ties to the better parent and then to the lower id. `sorts_draws`:
    these by score, equal ones in the order so far.

    best: (num_beams * count, 3) float64: score, or where `draws` -ln E, score, token id; those of a beam by id,
    `counts` says how many.
    """
    size = num_beams * count
    total = size * 0
    if draws:
        largest = tl.full((TILE,), float("-inf"), tl.float64)
        for start in range(0, size, TILE):
            at = start + tl.arange(0, TILE)
            found = tl.load(counts + at // count, mask=at < size, other=0)
            exists = (at < size) & (at % count < found)
            score = tl.load(best + at.to(tl.int64) * 3 + 1, mask=exists, other=float("-inf"))
            largest = tl.maximum(largest, score)
        largest_score = tl.max(largest)
        for start in range(0, size, TILE):
            at = start + tl.arange(0, TILE)
            found = tl.load(counts + at // count, mask=at < size, other=0)
            exists = (at < size) & (at % count < found)
            place = best + at.to(tl.int64) * 3
            above = tl.load(place + 1, mask=exists, other=0.0) - largest_score
            tl.store(place, above + tl.load(place, mask=exists, other=0.0), mask=exists)
        tl.debug_barrier()
    for start in range(0, size, TILE):
        at = start + tl.arange(0, TILE)
        found = tl.load(counts + at // count, mask=at < size, other=0)
        exists = (at < size) & (at % count < found)
        value = tl.load(best + at.to(tl.int64) * 3, mask=exists, other=0.0)
        value = tl.where(value > _LEAST_VALUE, value, _LEAST_VALUE).to(tl.float32)
        tl.store(rounded + at, tl.where(exists, value, float("-inf")), mask=at < size)
        total += tl.sum(exists.to(tl.int32))
    tl.debug_barrier()

    cut = size * 0 + _LEAST_KEY
    if total > count:
        cut, _ = cut_of(rounded, size, count.to(tl.float64), False, False, size.to(tl.float32), 0.0)
    length = size * 0
    for start in range(0, size, TILE):
        at = start + tl.arange(0, TILE)
        value = tl.load(rounded + at, mask=at < size, other=float("-inf"))
        taken = (value > float("-inf")) & (ordered_key(value) >= cut)
        place = length + tl.cumsum(taken.to(tl.int32), axis=0) - 1
        tl.store(chosen + place, at.to(tl.int64), mask=taken)
        tl.store(chosen_values + place, tl.load(best + at.to(tl.int64) * 3, mask=taken, other=0.0), mask=taken)
        length += tl.sum(taken.to(tl.int32))
    tl.debug_barrier()

    if sorts_draws != 0:
        for start in range(0, length, LANES):
            at = start + tl.arange(0, LANES)
            inside = at < length
            rank = rank_of(chosen_values, length, at, tl.load(chosen_values + at, mask=inside, other=0.0))
            wins = inside & (rank < count)
            score = tl.load(best + tl.load(chosen + at, mask=wins, other=0) * 3 + 1, mask=wins, other=0.0)
            tl.store(rounded + rank, score.to(tl.float32), mask=wins)
        tl.debug_barrier()
    for start in range(0, length, LANES):
        at = start + tl.arange(0, LANES)
        inside = at < length
        rank = rank_of(chosen_values, length, at, tl.load(chosen_values + at, mask=inside, other=0.0))
        wins = inside & (rank < count)
        place = tl.load(chosen + at, mask=wins, other=0)
        if sorts_draws != 0:
            score = tl.load(best + place * 3 + 1, mask=wins, other=0.0).to(tl.float32)
            rank = rank_of(rounded, tl.minimum(length, count), rank, score)
        tl.store(candidate_ids + rank, tl.load(best + place * 3 + 2, mask=wins, other=0.0).to(tl.int64), mask=wins)
        tl.store(candidate_parents + rank, place // count, mask=wins)
        tl.store(candidate_scores + rank, tl.load(best + place * 3 + 1, mask=wins, other=0.0).to(tl.float32), mask=wins)
    for start in range(tl.minimum(length, count), count, LANES):
        at = start + tl.arange(0, LANES)
        tl.store(candidate_ids + at, tl.full((LANES,), -1, tl.int64), mask=at < count)
        tl.store(candidate_parents + at, tl.full((LANES,), -1, tl.int64), mask=at < count)
        tl.store(candidate_scores + at, tl.full((LANES,), float("-inf"), tl.float32), mask=at < count)
    tl.debug_barrier()


@triton.jit
def num_finished(finished, num_beams):
    found = num_beams * 0
    for start in range(0, num_beams, LANES):
        at = start + tl.arange(0, LANES)
        found += tl.sum(tl.load(finished + at, mask=at < num_beams, other=0).to(tl.int32))
    return found


@triton.jit
def find_ended(candidate_ids, ends, count, is_last_step, eos, eos_count, ended):
    """Which candidates cannot go on; whether all of them."""
    all_ended = count == count
    for start in range(0, count, LANES):
        at = start + tl.arange(0, LANES)
        inside = at < count
        token = tl.load(candidate_ids + at, mask=inside, other=-1)
        over = (token < 0) | (tl.load(ends + at, mask=inside, other=1) != 0) | is_last_step
        for i in range(eos_count):
            over = over | (token == tl.load(eos + i))
        tl.store(ended + at, over.to(tl.int64), mask=inside)
        all_ended = all_ended & (tl.min(over.to(tl.int32)) != 0)
    tl.debug_barrier()
    return all_ended


@triton.jit
def update_finished(
    finished_scores, finished, finished_steps, finished_tokens, finished_parents, first,
    candidate_ids, candidate_parents, candidate_scores, ended, num_beams, count, step, normaliser, is_full, closed,
    keys, pool,
):  # fmt: skip
    """The best num_beams of the finished hypotheses and of the candidates that end among the first num_beams.

    keys: (num_beams + count,) float32. pool: four times as many int64.
    """
    size = num_beams + count
    parents = pool
    steps = parents + size
    tokens = steps + size
    flags = tokens + size
    for start in range(0, num_beams, LANES):
        at = start + tl.arange(0, LANES)
        inside = at < num_beams
        tl.store(keys + at, tl.load(finished_scores + at, mask=inside), mask=inside)
        tl.store(parents + at, tl.load(finished_parents + at, mask=inside).to(tl.int64), mask=inside)
        tl.store(steps + at, tl.load(finished_steps + at, mask=inside), mask=inside)
        tl.store(tokens + at, tl.load(finished_tokens + at, mask=inside), mask=inside)
        tl.store(flags + at, tl.load(finished + at, mask=inside).to(tl.int64), mask=inside)
    for start in range(0, count, LANES):
        at = start + tl.arange(0, LANES)
        inside = at < count
        token = tl.load(candidate_ids + at, mask=inside, other=-1)
        joins = (at < num_beams) & (token >= 0) & (tl.load(ended + at, mask=inside, other=0) != 0)
        # Bars are added one after the other, as float32 rounds them.
        score = tl.math.div_rn(tl.load(candidate_scores + at, mask=inside, other=0.0), normaliser)
        score += tl.where(is_full, _NEVER_WINS, 0.0)
        score += tl.where(closed, _NEVER_WINS, 0.0)
        score += tl.where(joins, 0.0, _NEVER_WINS)
        tl.store(keys + num_beams + at, score, mask=inside)
        tl.store(parents + num_beams + at, tl.load(candidate_parents + at, mask=inside, other=0) + first, mask=inside)
        tl.store(steps + num_beams + at, tl.zeros((LANES,), tl.int64) + step, mask=inside)
        tl.store(tokens + num_beams + at, token, mask=inside)
        tl.store(flags + num_beams + at, joins.to(tl.int64), mask=inside)
    tl.debug_barrier()
    for start in range(0, size, LANES):
        at = start + tl.arange(0, LANES)
        key = tl.load(keys + at, mask=at < size, other=0.0)
        rank = rank_of(keys, size, at, key)
        stays = (at < size) & (rank < num_beams)
        tl.store(finished_scores + rank, key, mask=stays)
        tl.store(finished_parents + rank, tl.load(parents + at, mask=stays, other=0).to(tl.int32), mask=stays)
        tl.store(finished_steps + rank, tl.load(steps + at, mask=stays, other=0), mask=stays)
        tl.store(finished_tokens + rank, tl.load(tokens + at, mask=stays, other=0), mask=stays)
        tl.store(finished + rank, tl.load(flags + at, mask=stays, other=0).to(tl.uint8), mask=stays)
    tl.debug_barrier()


@triton.jit
def update_running(
    running_scores, step_tokens, step_parents, first,
    candidate_ids, candidate_parents, candidate_scores, ended, num_beams, count, pad_token_id, keys, parents,
):  # fmt: skip
    """The best num_beams candidates that do not end go on; `parents` are their ranks."""
    for start in range(0, count, LANES):
        at = start + tl.arange(0, LANES)
        inside = at < count
        over = tl.load(ended + at, mask=inside, other=0) != 0
        score = tl.load(candidate_scores + at, mask=inside, other=0.0) + tl.where(over, _NEVER_WINS, 0.0)
        tl.store(keys + at, score, mask=inside)
    tl.debug_barrier()
    for start in range(0, count, LANES):
        at = start + tl.arange(0, LANES)
        key = tl.load(keys + at, mask=at < count, other=0.0)
        rank = rank_of(keys, count, at, key)
        stays = (at < count) & (rank < num_beams)
        token = tl.load(candidate_ids + at, mask=stays, other=-1)
        parent = tl.where(token >= 0, tl.load(candidate_parents + at, mask=stays, other=0), rank.to(tl.int64))
        tl.store(running_scores + rank, key, mask=stays)
        tl.store(step_tokens + rank, tl.where(token >= 0, token, pad_token_id), mask=stays)
        tl.store(step_parents + rank, (first + parent).to(tl.int32), mask=stays)
        tl.store(parents + rank, parent, mask=stays)
    tl.debug_barrier()


@triton.jit(
    do_not_specialize=[
        "num_beams", "count", "prompts", "draws", "step", "has_steps", "has_limit", "max_new_tokens", "stops_when_full",
        "sorts_draws", "halves", "eos_count", "pad_token_id", "append_stride", "history_stride", "has_history",
        "prompt_length", "integers_room",
    ]
)  # fmt: skip
def update_beams_kernel(
    best, counts, floats, doubles, integers, integers_room: tl.int64, prompt_facts, ticket,
    candidate_ids, candidate_parents, candidate_scores, ends, num_beams: tl.int32, count: tl.int32, prompts: tl.int32,
    draws: tl.int32,
    step: tl.int64, steps, has_steps: tl.int32, limit, has_limit: tl.int32, max_new_tokens: tl.int64,
    normalisers, stops_when_full: tl.int32, sorts_draws: tl.int32, halves: tl.int32,
    eos, eos_count: tl.int32, pad_token_id: tl.int64,
    append, append_stride: tl.int64, history, history_stride: tl.int64, has_history: tl.int32, prompt_length: tl.int64,
    slots, shared, running_scores, step_tokens, step_parents,
    finished_scores, finished, finished_steps, finished_tokens, finished_parents, is_open, unfinished,
    token_ids, source_rows, shared_out, status,
):  # fmt: skip
    """Grid (prompts,). `halves`: SELECT merges the candidates, ADVANCE updates the state with them.

    steps, limit: those of a BeamState where it has them. normalisers: (2, max_new_tokens), by step.
    """
    prompt = tl.program_id(0).to(tl.int64)
    first = prompt * num_beams
    is_over = has_steps != 0
    if is_over:
        step = tl.load(steps)
        is_over = tl.load(unfinished) == 0
    if is_over:
        column = prompt_length + step - 1
        stay(append, append_stride, column, first, num_beams, step, token_ids, source_rows, shared_out, status)
        return
    # Every array of a prompt starts at its share of the workspace.
    size = num_beams * count + num_beams
    keys = floats + prompt * size
    integers += prompt * integers_room
    candidate_ids += prompt * count
    candidate_parents += prompt * count
    candidate_scores += prompt * count
    if (halves & SELECT) != 0:
        merge_candidates(
            best + first * count * 3, counts + first, num_beams, count, draws != 0, sorts_draws, keys, integers,
            doubles + prompt * size, candidate_ids, candidate_parents, candidate_scores,
        )  # fmt: skip
    if (halves & ADVANCE) != 0:
        ended = integers
        parents = ended + count
        wanted = parents + num_beams
        rows = wanted + num_beams
        free = rows + num_beams
        sources = free + num_beams
        common = sources + num_beams
        pool = common + num_beams
        slots += first
        running_scores += first
        finished_scores += first
        finished += first
        shared += first * num_beams
        all_rows = prompts.to(tl.int64) * num_beams

        end = max_new_tokens
        if has_limit != 0:
            end = tl.load(limit)
        was_open = tl.load(is_open + prompt) != 0
        is_full = (stops_when_full != 0) & (num_finished(finished, num_beams) == num_beams)
        all_ended = find_ended(candidate_ids, ends + prompt * count, count, step + 1 == end, eos, eos_count, ended)
        update_finished(
            finished_scores, finished, finished_steps + first, finished_tokens + first, finished_parents + first, first,
            candidate_ids, candidate_parents, candidate_scores, ended, num_beams, count, step,
            tl.load(normalisers + step), is_full, was_open == 0, keys, pool,
        )  # fmt: skip
        update_running(
            running_scores, step_tokens + step * all_rows + first, step_parents + step * all_rows + first, first,
            candidate_ids, candidate_parents, candidate_scores, ended, num_beams, count, pad_token_id, keys, parents,
        )  # fmt: skip

        attainable = tl.math.div_rn(tl.load(running_scores), tl.load(normalisers + max_new_tokens + step))
        found = num_finished(finished, num_beams)
        worst = tl.load(finished_scores + num_beams - 1)
        improves = ((found > 0) & (attainable > worst)) | ((found < num_beams) & (attainable > _NEVER_WINS))
        stays_open = was_open & improves

        find_rows(slots, shared, first, num_beams, step, parents, wanted, rows, free, sources, common)
        share_histories(shared, num_beams, step, sources)
        append += first * append_stride + prompt_length
        history += first * history_stride + prompt_length
        copy_histories(append, append_stride, num_beams, step, sources, common)
        if has_history != 0:
            copy_histories(history, history_stride, num_beams, step, sources, common)
        stuck = (tl.load(candidate_ids) < 0) & (found == 0)
        for start in range(0, num_beams, LANES):
            at = start + tl.arange(0, LANES)
            inside = at < num_beams
            row = tl.load(rows + at, mask=inside, other=0)
            token = tl.load(step_tokens + step * all_rows + first + at, mask=inside, other=0)
            tl.store(slots + at, first + row, mask=inside)
            tl.store(append + row * append_stride + step, token, mask=inside)
            if has_history != 0:
                tl.store(history + row * history_stride + step, token, mask=inside)
            tl.store(token_ids + first + row, token, mask=inside)
            tl.store(source_rows + first + at, first + tl.load(sources + at, mask=inside, other=0), mask=inside)
            tl.store(shared_out + first + at, tl.load(common + at, mask=inside, other=0), mask=inside)
            of_row = tl.load(status + first + at, mask=inside, other=0)
            silent = (was_open == 0) | ((of_row == _ALL_MASKED) & (stuck == 0))
            tl.store(status + first + at, tl.where(silent, 0, of_row), mask=inside)
        tl.store(is_open + prompt, stays_open.to(tl.uint8))

        facts = tl.where(all_ended, _ALL_ENDED, 0) | tl.where(found == num_beams, _ALL_FINISHED, 0)
        facts = facts | tl.where(stays_open, _OPEN, 0)
        tl.store(prompt_facts + prompt, facts)
        tl.debug_barrier()
        # The last to come counts.
        if tl.atomic_add(ticket, 1, sem="acq_rel") == prompts - 1:
            tl.debug_barrier()
            all_facts = prompts * 0 + (_ALL_ENDED | _ALL_FINISHED)
            num_open = prompts * 0
            for start in range(0, prompts, TILE):
                at = start + tl.arange(0, TILE)
                of_prompt = tl.load(prompt_facts + at, mask=at < prompts, other=_ALL_ENDED | _ALL_FINISHED)
                all_facts = all_facts & tl.min(tl.where((of_prompt & _ALL_ENDED) != 0, -1, ~_ALL_ENDED))
                all_facts = all_facts & tl.min(tl.where((of_prompt & _ALL_FINISHED) != 0, -1, ~_ALL_FINISHED))
                num_open += tl.sum((of_prompt & _OPEN) // _OPEN)
            over = (all_facts & _ALL_ENDED) != 0
            over = over | ((stops_when_full != 0) & ((all_facts & _ALL_FINISHED) != 0))
            tl.store(unfinished, tl.where(over, 0, num_open).to(tl.int64))
            tl.store(ticket, prompts * 0)
            if has_steps != 0:
                # Every program has read the step.
                for start in range(0, prompts * num_beams, TILE):
                    at = start + tl.arange(0, TILE)
                    inside = at < prompts * num_beams
                    tl.store(steps + at, tl.load(steps + at, mask=inside, other=0) + 1, mask=inside)
