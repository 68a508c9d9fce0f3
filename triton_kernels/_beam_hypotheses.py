"""The finished hypotheses and the running beams of a prompt after a step."""

from typing import Any, NamedTuple

import triton
import triton.language as tl
from pygen.triton_kernels._select import LANES, rank_of

from pygen.ops._beam_state import NEVER_WINS as _NEVER_WINS

NEVER_WINS = tl.constexpr(_NEVER_WINS)


class Finished(NamedTuple):
    """The finished hypotheses, best first; pointers. See BeamState."""

    scores: Any  # (num_beams,) float32
    exists: Any  # (num_beams,) uint8
    steps: Any  # (num_beams,) int64
    tokens: Any  # (num_beams,) int64
    parents: Any  # (num_beams,) int32


@triton.jit
def num_finished(finished, num_beams):
    found = num_beams * 0
    for start in range(0, num_beams, LANES):
        at = start + tl.arange(0, LANES)
        found += tl.sum(tl.load(finished.exists + at, mask=at < num_beams, other=0).to(tl.int32))
    return found


@triton.jit
def find_ended(candidates, count, is_last_step, eos_token_ids, eos_count, ended):
    """Writes which candidates cannot go on, (count,) int64; returns whether none can."""
    all_ended = count == count
    for start in range(0, count, LANES):
        at = start + tl.arange(0, LANES)
        inside = at < count
        token = tl.load(candidates.ids + at, mask=inside, other=-1)
        over = (token < 0) | (tl.load(candidates.ends + at, mask=inside, other=1) != 0) | is_last_step
        for i in range(eos_count):
            over = over | (token == tl.load(eos_token_ids + i))
        tl.store(ended + at, over.to(tl.int64), mask=inside)
        all_ended = all_ended & (tl.min(over.to(tl.int32)) != 0)
    tl.debug_barrier()
    return all_ended


@triton.jit
def update_finished(
    finished, first, candidates, ended, num_beams, count, step, normaliser, is_full, closed, keys, pool
):
    """Keeps the best num_beams of the finished hypotheses and of the candidates that end among the first num_beams.

    first: the flat index of the prompt's first beam. ended: (count,) int64. keys: (num_beams + count,) float32.
    pool: four times as many int64.
    """
    size = num_beams + count
    parents = pool
    steps = parents + size
    tokens = steps + size
    flags = tokens + size
    for start in range(0, num_beams, LANES):
        at = start + tl.arange(0, LANES)
        inside = at < num_beams
        tl.store(keys + at, tl.load(finished.scores + at, mask=inside), mask=inside)
        tl.store(parents + at, tl.load(finished.parents + at, mask=inside).to(tl.int64), mask=inside)
        tl.store(steps + at, tl.load(finished.steps + at, mask=inside), mask=inside)
        tl.store(tokens + at, tl.load(finished.tokens + at, mask=inside), mask=inside)
        tl.store(flags + at, tl.load(finished.exists + at, mask=inside).to(tl.int64), mask=inside)
    for start in range(0, count, LANES):
        at = start + tl.arange(0, LANES)
        inside = at < count
        token = tl.load(candidates.ids + at, mask=inside, other=-1)
        joins = (at < num_beams) & (token >= 0) & (tl.load(ended + at, mask=inside, other=0) != 0)
        # One addition after the other, as float32 rounds them.
        score = tl.math.div_rn(tl.load(candidates.scores + at, mask=inside, other=0.0), normaliser)
        score += tl.where(is_full, NEVER_WINS, 0.0)
        score += tl.where(closed, NEVER_WINS, 0.0)
        score += tl.where(joins, 0.0, NEVER_WINS)
        tl.store(keys + num_beams + at, score, mask=inside)
        tl.store(parents + num_beams + at, tl.load(candidates.parents + at, mask=inside, other=0) + first, mask=inside)
        tl.store(steps + num_beams + at, tl.zeros((LANES,), tl.int64) + step, mask=inside)
        tl.store(tokens + num_beams + at, token, mask=inside)
        tl.store(flags + num_beams + at, joins.to(tl.int64), mask=inside)
    tl.debug_barrier()
    for start in range(0, size, LANES):
        at = start + tl.arange(0, LANES)
        key = tl.load(keys + at, mask=at < size, other=0.0)
        rank = rank_of(keys, size, at, key)
        stays = (at < size) & (rank < num_beams)
        tl.store(finished.scores + rank, key, mask=stays)
        tl.store(finished.parents + rank, tl.load(parents + at, mask=stays, other=0).to(tl.int32), mask=stays)
        tl.store(finished.steps + rank, tl.load(steps + at, mask=stays, other=0), mask=stays)
        tl.store(finished.tokens + rank, tl.load(tokens + at, mask=stays, other=0), mask=stays)
        tl.store(finished.exists + rank, tl.load(flags + at, mask=stays, other=0).to(tl.uint8), mask=stays)
    tl.debug_barrier()


@triton.jit
def update_running(
    running_scores, step_tokens, step_parents, first, candidates, ended, num_beams, count, pad_token_id, keys, parents
):
    """Writes the best num_beams candidates that do not end as the running beams, and their parents' ranks.

    step_tokens, step_parents: those of this step, from the prompt's first beam on, whose flat index is `first`.
    keys: (count,) float32. parents: (num_beams,) int64.
    """
    for start in range(0, count, LANES):
        at = start + tl.arange(0, LANES)
        inside = at < count
        over = tl.load(ended + at, mask=inside, other=0) != 0
        score = tl.load(candidates.scores + at, mask=inside, other=0.0) + tl.where(over, NEVER_WINS, 0.0)
        tl.store(keys + at, score, mask=inside)
    tl.debug_barrier()
    for start in range(0, count, LANES):
        at = start + tl.arange(0, LANES)
        key = tl.load(keys + at, mask=at < count, other=0.0)
        rank = rank_of(keys, count, at, key)
        stays = (at < count) & (rank < num_beams)
        token = tl.load(candidates.ids + at, mask=stays, other=-1)
        parent = tl.where(token >= 0, tl.load(candidates.parents + at, mask=stays, other=0), rank.to(tl.int64))
        tl.store(running_scores + rank, key, mask=stays)
        tl.store(step_tokens + rank, tl.where(token >= 0, token, pad_token_id), mask=stays)
        tl.store(step_parents + rank, (first + parent).to(tl.int32), mask=stays)
        tl.store(parents + rank, parent, mask=stays)
    tl.debug_barrier()
