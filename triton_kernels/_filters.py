"""The filters of a row, in Hugging Face's order, on an array of its scores over temperature.

Every filter keeps a prefix of an order: all keys above a cut and some at it, those of the lowest ids, or for top_p of
the highest. What it removes becomes -inf, so that the next filter sees the survivors only.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl
from pygen.triton_kernels._knobs import (
    FILTERED,
    FILTERS,
    INT_KNOBS,
    MIN_P,
    NUM_FILTERS,
    NUM_FLOAT_KNOBS,
    NUM_INT_KNOBS,
    TOP_H,
    TOP_N_SIGMA,
    TOP_P,
)
from pygen.triton_kernels._select import (
    ALL,
    OTHERS,
    TILE,
    compact,
    cut_of,
    distribution_of,
    keep_from,
    key_at_least,
    ordered_key,
    score_of_key,
    standard_deviation_of,
)
from pygen.triton_kernels._workspace import LIST_CAPACITY, TOP_H_CAPACITY, TOP_H_TOKENS

TYPICAL_P = tl.constexpr(FILTERS.index("typical_p"))
EPSILON_CUTOFF = tl.constexpr(FILTERS.index("epsilon_cutoff"))
ETA_CUTOFF = tl.constexpr(FILTERS.index("eta_cutoff"))
MIN_TOKENS_TO_KEEP = tl.constexpr(INT_KNOBS.index("min_tokens_to_keep"))
_LEAST_MASS = tl.constexpr(1e-300)  # any mass at all


class Filters(NamedTuple):
    """The filters of a row."""

    flags: Any  # a bit for every filter that acts
    knobs: Any  # (NUM_FILTERS,) float32, those of the row
    min_tokens_to_keep: Any


@triton.jit
def row_filters(knobs, int_knobs, row, flags):
    return Filters(
        flags=flags & FILTERED,
        knobs=knobs + row * NUM_FLOAT_KNOBS,
        min_tokens_to_keep=tl.load(int_knobs + row * NUM_INT_KNOBS + MIN_TOKENS_TO_KEEP),
    )


@triton.jit
def apply_filters(array, listed, size, filters, largest, total_mass, work):
    """Applies every filter of a row to an array of its scores, in place.

    Between filters, the survivors of more than a tile move to the row's list where that makes them few.
    Returns (array, listed, size, largest) of what is left, where listed > 0 if the array is the list.

    array: (size,) float32, ids ascending. largest: that of the array. total_mass: sum of e^(score - largest) over the
    whole row before the first filter, for a top_p that comes first; negative: the array's own. work: the row's.
    """
    min_tokens_to_keep = filters.min_tokens_to_keep
    none = min_tokens_to_keep * 0
    for i in range(NUM_FILTERS):
        stage = none + i
        # 0, which the compiler cannot know: else it computes what rare filters need before the loop, and keeps it.
        hidden = tl.where(min_tokens_to_keep < 0, stage, 0)
        if ((filters.flags >> stage) & 1) != 0:
            value = tl.load(filters.knobs + stage)
            by_distance = stage == TYPICAL_P
            by_mass = (stage == TOP_P) | (stage == TYPICAL_P)
            by_value = (stage == TOP_N_SIGMA) | (stage == MIN_P) | (stage >= EPSILON_CUTOFF)
            splits_ties = (stage == TOP_H) | (stage == TOP_P) | (stage == MIN_P)
            mass = total_mass
            entropy = total_mass * 0.0
            if (stage >= TYPICAL_P) | ((stage == TOP_P) & (total_mass < 0.0)):
                mass, entropy = distribution_of(array, size, largest)
            log_mass = tl.log(tl.where(mass > 0.0, mass, 1.0))
            center = (largest.to(tl.float64) + log_mass - entropy).to(tl.float32)

            target = value.to(tl.float64)
            cut = ordered_key(largest)
            kept = cut * 0 + ALL
            if stage == TOP_H:
                target = target * 0.0 + TOP_H_TOKENS
            if by_mass:
                target = tl.maximum(target * mass, _LEAST_MASS)
            if by_value:
                # How far below the largest score the least kept one is: ln of a mass, that of the largest being 1.
                least = tl.log(target)
                if stage == TOP_N_SIGMA:
                    least = -(target * standard_deviation_of(array, size))
                if stage == EPSILON_CUTOFF:
                    least += log_mass
                if stage == ETA_CUTOFF:
                    least = tl.minimum(least, 0.5 * least - entropy) + log_mass
                cut = tl.minimum(key_at_least(largest.to(tl.float64) + least), cut)

            # The second part widens the prefix to min_tokens_to_keep. For top_h it is the filter itself, whose first
            # part finds its candidates.
            for part in range(2):
                first = none + part == 0
                widens = ((stage == TOP_N_SIGMA) | (stage >= TOP_P)) & (min_tokens_to_keep > 1)
                if tl.where(first, by_value == 0, (stage == TOP_H) | widens):
                    if (first == 0) & (stage != TOP_H):
                        target = min_tokens_to_keep.to(tl.float64)
                    found, above = cut_of(array, size, target, by_mass & first, by_distance, largest, center)
                    unit = tl.where(by_mass & first, tl.exp(score_of_key(found) - largest), 1.0).to(tl.float64)
                    at_cut = tl.ceil(tl.minimum((target - above) / unit, 1e9)).to(tl.int32)
                    # The n nearest to the entropy are exactly n; up to a mass, all ties stay.
                    at_cut = tl.where(splits_ties | (by_distance & (first == 0)), at_cut, ALL)
                    if first | (stage == TOP_H) | (found < cut):
                        cut = found
                        kept = at_cut
                    elif found == cut:
                        kept = tl.maximum(kept, at_cut)
                    if first & (stage == TOP_H):
                        target = _count_top_h(array, size, cut, kept, value, largest, work.top_h_scratch + hidden)
            largest, left = keep_from(array, size, cut, kept, stage == TOP_P, by_distance, center)
            total_mass = total_mass * 0.0 - 1.0
            others_follow = (filters.flags >> (stage + 1)) != 0
            if others_follow & (size > TILE) & (left <= LIST_CAPACITY) & (left <= size // 2):
                compact(array, work.list_ids, listed, size, work.list_scores, work.list_ids)
                array = work.list_scores
                listed = left
                size = left
    return array, listed, size, largest


@triton.jit
def _count_top_h(array, size, cut, kept, top_h, largest, scratch):
    """How many of the candidates, the keys above `cut` and the first `kept` at it, top_h keeps; float64.

    Potraghloo et al. 2025: while the cumulative -sum p ln p, largest first, is at most top_h times the whole sum.
    """
    lane = tl.arange(0, TOP_H_CAPACITY)
    tl.store(scratch + lane, tl.full((TOP_H_CAPACITY,), float("-inf"), tl.float32))
    tl.debug_barrier()
    before = kept * 0
    count = kept * 0
    for start in range(0, size, TILE):
        at = start + tl.arange(0, TILE)
        score = tl.load(array + at, mask=at < size, other=float("-inf"))
        key = ordered_key(score)
        is_equal = ((key == cut) & (score > float("-inf"))).to(tl.int32)
        rank = before + tl.cumsum(is_equal, axis=0)
        taken = ((key > cut) & (score > float("-inf"))) | ((is_equal != 0) & (rank <= kept))
        index = count + tl.cumsum(taken.to(tl.int32), axis=0) - 1
        tl.store(scratch + index, score, mask=taken & (index < TOP_H_CAPACITY))
        before += tl.sum(is_equal)
        count += tl.sum(taken.to(tl.int32))
    tl.debug_barrier()

    # Best first, as the other backends add them up: a sum may equal its bound.
    score = tl.load(scratch + lane)
    rank = tl.zeros((TOP_H_CAPACITY,), tl.int32)
    for start in range(0, count, OTHERS):
        at = start + tl.arange(0, OTHERS)
        other = tl.load(scratch + at)
        earlier = (other[:, None] == score[None, :]) & (at[:, None] < lane[None, :])
        rank += tl.sum(((other[:, None] > score[None, :]) | earlier).to(tl.int32), axis=0)
    below = tl.where(lane < count, score.to(tl.float64) - largest.to(tl.float64), 0.0)
    log_p = below - tl.log(tl.sum(tl.where(lane < count, tl.exp(below), 0.0)))
    terms = (scratch + TOP_H_CAPACITY).to(tl.pointer_type(tl.float64), bitcast=True)
    tl.store(terms + rank, -(tl.exp(log_p) * log_p), mask=lane < count)
    tl.debug_barrier()
    entropy = top_h.to(tl.float64) * 0.0
    for i in range(count):
        entropy += tl.load(terms + i)
    reached = entropy * 0.0
    within = count * 0
    for i in range(count):
        reached += tl.load(terms + i)
        within += (reached <= top_h.to(tl.float64) * entropy).to(tl.int32)
    return tl.maximum(within, 1).to(tl.float64)
