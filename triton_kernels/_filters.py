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
    TILE,
    cut_of,
    distribution_of,
    keep_from,
    key_at_least,
    ordered_key,
    score_of_key,
    standard_deviation_of,
)
from pygen.triton_kernels._workspace import TOP_H_CAPACITY, TOP_H_TOKENS

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
def apply_filters(array, size, filters, largest, total_mass, top_h_scratch):
    """Applies every filter of a row to `array`, in place; returns the largest score left.

    array: (size,) float32, ids ascending. largest: that of the array. total_mass: sum of e^(score - largest) over the
    whole row before the first filter, for a top_p that comes first; negative: the array's own. top_h_scratch:
    (2 * TOP_H_CAPACITY,) float32.
    """
    min_tokens_to_keep = filters.min_tokens_to_keep
    none = min_tokens_to_keep * 0
    for i in range(NUM_FILTERS):
        stage = none + i
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
                        target = _count_top_h(array, size, cut, kept, value, largest, top_h_scratch)
            largest = keep_from(array, size, cut, kept, stage == TOP_P, by_distance, center)
            total_mass = total_mass * 0.0 - 1.0
    return largest


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

    score = tl.load(scratch + lane)
    # Beside a certain token all terms may be tiny, so the largest is their unit.
    exists = score > float("-inf")
    below = tl.where(exists, score.to(tl.float64) - largest.to(tl.float64), 0.0)
    log_total = tl.log(tl.sum(tl.where(exists, tl.exp(below), 0.0)))
    log_p = below - log_total
    term = tl.where(exists, tl.abs(tl.exp(log_p) * log_p), 0.0)
    unit = tl.max(term)
    # Without the way through memory every thread would compute the terms of its many pairs.
    tl.store(scratch + TOP_H_CAPACITY + lane, (term / tl.where(unit > 0.0, unit, 1.0)).to(tl.float32))
    tl.debug_barrier()
    term = tl.load(scratch + TOP_H_CAPACITY + lane)
    score = tl.load(scratch + lane)
    other = tl.load(scratch + lane)
    precedes = (score[:, None] > other[None, :]) | (
        (score[:, None] == other[None, :]) & (lane[:, None] <= lane[None, :])
    )
    reached = tl.sum(tl.where(precedes, term[:, None], 0.0), axis=0)
    within = (reached <= top_h * tl.max(reached)) & (other > float("-inf"))
    return tl.maximum(tl.sum(within.to(tl.int32)), 1).to(tl.float64)
