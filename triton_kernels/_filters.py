"""The filters of a row, in Hugging Face's order, on an array of its scores over temperature.

Every filter keeps a prefix of an order: all keys above a cut and a few at it, the lowest ids, for top_p the highest.
What it removes becomes -inf, so that the next one sees the survivors only.
"""

import triton
import triton.language as tl
from pygen.triton_kernels._select import (
    ALL,
    TILE,
    cut_of,
    distribution_of,
    keep_from,
    ordered_key,
    score_of_key,
)

# The order of the filters, and of their knobs in memory.
TOP_H = tl.constexpr(0)
TOP_K = tl.constexpr(1)
TOP_P = tl.constexpr(2)
MIN_P = tl.constexpr(3)
TYPICAL_P = tl.constexpr(4)
EPSILON_CUTOFF = tl.constexpr(5)
ETA_CUTOFF = tl.constexpr(6)
FILTERS = tl.constexpr(7)

# Bits of a row's flags, for the filters that can come first and bound what they keep.
TOP_H_ACTS = tl.constexpr(1)
TOP_K_ACTS = tl.constexpr(2)
TOP_P_ACTS = tl.constexpr(4)
MIN_P_ACTS = tl.constexpr(8)

# top_h looks at the 100 largest only; there is room for a power of two.
TOP_H_TOKENS = tl.constexpr(100)
TOP_H_ROOM = tl.constexpr(128)

_LEAST = tl.constexpr(1e-300)  # any mass at all


@triton.jit
def key_at_least(threshold):
    """The key of the least float32 that is not below a float64."""
    rounded = threshold.to(tl.float32)
    return ordered_key(rounded) + (rounded.to(tl.float64) < threshold).to(tl.int32)


@triton.jit
def apply_filters(array, size, knobs, rows, flags, min_tokens_to_keep, largest, total_mass, room):
    """Applies every filter of a row to `array`, in place; returns the largest score left.

    array: (size,) float32, ids ascending. knobs: those of the row, `rows` apart. flags: the bit of a filter tells
    whether it acts. largest: that of the array.
    total_mass: sum of e^(score - largest) before the first filter, over the whole row, for a top_p that comes first;
    negative: the array's own. room: (2 * TOP_H_ROOM,) float32.
    """
    none = min_tokens_to_keep * 0
    for place in range(FILTERS):
        stage = none + place
        if ((flags >> stage) & 1) != 0:
            value = tl.load(knobs + stage * rows)
            by_distance = stage == TYPICAL_P
            by_mass = (stage == TOP_P) | (stage == TYPICAL_P)
            by_value = (stage == MIN_P) | (stage >= EPSILON_CUTOFF)
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
                target = tl.maximum(target * mass, _LEAST)
            if by_value:
                # ln of the least mass kept, that of the largest score being 1.
                least = tl.log(target)
                if stage == EPSILON_CUTOFF:
                    least += log_mass
                if stage == ETA_CUTOFF:
                    least = tl.minimum(least, 0.5 * least - entropy) + log_mass
                cut = tl.minimum(key_at_least(largest.to(tl.float64) + least), cut)

            # The second part widens the prefix to min_tokens_to_keep; for top_h, whose first part finds its
            # candidates, it is the filter itself.
            for part in range(2):
                first = none + part == 0
                if tl.where(first, by_value == 0, (stage == TOP_H) | ((stage >= TOP_P) & (min_tokens_to_keep > 1))):
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
                        target = _count_top_h(array, size, cut, kept, value, largest, room)
            largest = keep_from(array, size, cut, kept, stage == TOP_P, by_distance, center)
            total_mass = total_mass * 0.0 - 1.0
    return largest


@triton.jit
def _count_top_h(array, size, cut, kept, top_h, largest, room):
    """How many of the candidates, the keys above `cut` and the first `kept` at it, top_h keeps; float64.

    Potraghloo et al. 2025: while the cumulative -sum p ln p, largest first, is at most top_h times all of it.
    """
    lane = tl.arange(0, TOP_H_ROOM)
    tl.store(room + lane, tl.full((TOP_H_ROOM,), float("-inf"), tl.float32))
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
        place = count + tl.cumsum(taken.to(tl.int32), axis=0) - 1
        tl.store(room + place, score, mask=taken & (place < TOP_H_ROOM))
        before += tl.sum(is_equal)
        count += tl.sum(taken.to(tl.int32))
    tl.debug_barrier()

    score = tl.load(room + lane)
    # Beside a certain token all terms may be tiny, so they are taken in units of the largest.
    is_there = score > float("-inf")
    below = tl.where(is_there, score.to(tl.float64) - largest.to(tl.float64), 0.0)
    log_total = tl.log(tl.sum(tl.where(is_there, tl.exp(below), 0.0)))
    log_p = below - log_total
    term = tl.where(is_there, tl.abs(tl.exp(log_p) * log_p), 0.0)
    unit = tl.max(term)
    # Through memory, for else every thread would compute the terms of its many pairs.
    tl.store(room + TOP_H_ROOM + lane, (term / tl.where(unit > 0.0, unit, 1.0)).to(tl.float32))
    tl.debug_barrier()
    term = tl.load(room + TOP_H_ROOM + lane)
    score = tl.load(room + lane)
    other = tl.load(room + lane)
    precedes = (score[:, None] > other[None, :]) | (
        (score[:, None] == other[None, :]) & (lane[:, None] <= lane[None, :])
    )
    reached = tl.sum(tl.where(precedes, term[:, None], 0.0), axis=0)
    within = (reached <= top_h * tl.max(reached)) & (other > float("-inf"))
    return tl.maximum(tl.sum(within.to(tl.int32)), 1).to(tl.float64)
