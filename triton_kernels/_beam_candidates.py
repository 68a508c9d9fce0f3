"""The K best continuations of a prompt, merged from those of its beams."""

from typing import Any, NamedTuple

import triton
import triton.language as tl
from pygen.triton_kernels._scan import LEAST_VALUE
from pygen.triton_kernels._select import LANES, LEAST_KEY, TILE, cut_of, ordered_key, rank_of


class Candidates(NamedTuple):
    """The K best continuations, best first; pointers. -1, -1 and -inf stand for missing ones."""

    ids: Any  # (K,) int64
    parents: Any  # (K,) int64, beams of the prompt
    scores: Any  # (K,) float32
    ends: Any  # (K,) uint8: which of them the caller's criteria end


CANDIDATES_TYPES = Candidates("i64", "i64", "fp32", "u8")


@triton.jit
def merge_candidates(best, counts, num_beams, count, draws, sorts_draws, rounded, chosen, chosen_values, candidates):
    """Writes the `count` best continuations, best first; ties go to the better parent and then to the lower id.

    best: (num_beams * count, 3) float64: score, or where `draws` -ln E, score, token id; those of a beam by id.
    counts: (num_beams,) int64, how many each beam has. sorts_draws: the chosen ones are sorted by score, and equal ones
    stay in order. rounded: (num_beams * count,) float32; chosen: the same, int64; chosen_values: the same, float64.
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
            entry = best + at.to(tl.int64) * 3
            above = tl.load(entry + 1, mask=exists, other=0.0) - largest_score
            tl.store(entry, above + tl.load(entry, mask=exists, other=0.0), mask=exists)
        tl.debug_barrier()
    for start in range(0, size, TILE):
        at = start + tl.arange(0, TILE)
        found = tl.load(counts + at // count, mask=at < size, other=0)
        exists = (at < size) & (at % count < found)
        value = tl.load(best + at.to(tl.int64) * 3, mask=exists, other=0.0)
        value = tl.where(value > LEAST_VALUE, value, LEAST_VALUE).to(tl.float32)
        tl.store(rounded + at, tl.where(exists, value, float("-inf")), mask=at < size)
        total += tl.sum(exists.to(tl.int32))
    tl.debug_barrier()

    cut = size * 0 + LEAST_KEY
    if total > count:
        cut, _ = cut_of(rounded, size, count.to(tl.float64), False, False, size.to(tl.float32), 0.0)
    length = size * 0
    for start in range(0, size, TILE):
        at = start + tl.arange(0, TILE)
        value = tl.load(rounded + at, mask=at < size, other=float("-inf"))
        taken = (value > float("-inf")) & (ordered_key(value) >= cut)
        index = length + tl.cumsum(taken.to(tl.int32), axis=0) - 1
        tl.store(chosen + index, at.to(tl.int64), mask=taken)
        tl.store(chosen_values + index, tl.load(best + at.to(tl.int64) * 3, mask=taken, other=0.0), mask=taken)
        length += tl.sum(taken.to(tl.int32))
    tl.debug_barrier()

    if sorts_draws:
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
        index = tl.load(chosen + at, mask=wins, other=0)
        entry = best + index * 3
        score = tl.load(entry + 1, mask=wins, other=0.0).to(tl.float32)
        if sorts_draws:
            rank = rank_of(rounded, tl.minimum(length, count), rank, score)
        tl.store(candidates.ids + rank, tl.load(entry + 2, mask=wins, other=0.0).to(tl.int64), mask=wins)
        tl.store(candidates.parents + rank, index // count, mask=wins)
        tl.store(candidates.scores + rank, score, mask=wins)
    for start in range(tl.minimum(length, count), count, LANES):
        at = start + tl.arange(0, LANES)
        tl.store(candidates.ids + at, tl.full((LANES,), -1, tl.int64), mask=at < count)
        tl.store(candidates.parents + at, tl.full((LANES,), -1, tl.int64), mask=at < count)
        tl.store(candidates.scores + at, tl.full((LANES,), float("-inf"), tl.float32), mask=at < count)
    tl.debug_barrier()
