"""Exact selection in an array of scores in global memory, of which -inf are none: n-th largest, and by mass.

A program works on its array alone. Sums run over tiles of one size in one order, so that they do not depend on how many
programs there are.
"""

import triton
import triton.language as tl

TILE = tl.constexpr(1024)  # scores looked at together
ALL = tl.constexpr(2**30)  # more than there are

_TURNS = tl.constexpr(11)
_SIGN = tl.constexpr(-(2**31))


@triton.jit
def ordered_key(score):
    """int32 in the order of float32 scores that are no NaN; -0 and 0 have the same."""
    bits = tl.where(score == 0.0, 0.0, score).to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def score_of_key(key):
    return (key ^ ((key >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def key_of(score, by_distance, center):
    """The key that a filter goes by, best first: the score, or how near it is to `center`."""
    if by_distance:
        score = -tl.abs(score - center)
    return ordered_key(score)


@triton.jit
def cut_of(array, size, target, by_mass, by_distance, largest, center):
    """The largest key from which on the weights reach `target`, and the weight above it; the least int32 if none does.

    The weight of a score is 1, or e^(score - largest) where `by_mass`. A turn settles three bits of the key, the last
    one two: thresholds past those two are known to be too high.
    array: (size,) float32. target, and the weight: float64.
    """
    digits = tl.arange(0, 8)
    none = size * 0
    least = none
    above = target * 0.0
    key = tl.full((TILE,), 0, tl.int32)
    weight = tl.full((TILE,), 0.0, tl.float32)
    unread = none + 1
    for turn in range(_TURNS):
        shift = tl.maximum(none + (29 - 3 * turn), 0)
        thresholds = (least + (digits << shift)) ^ _SIGN
        reached = tl.full((8,), 0.0, tl.float64)
        for start in range(0, size, TILE):
            if unread != 0:
                at = start + tl.arange(0, TILE)
                score = tl.load(array + at, mask=at < size, other=float("-inf"))
                weight = tl.where(by_mass, tl.exp(score - largest), 1.0)
                weight = tl.where(score > float("-inf"), weight, 0.0)
                key = key_of(score, by_distance, center)
            reaching = tl.where(key[:, None] >= thresholds[None, :], weight[:, None], 0.0)
            reached += tl.sum(reaching, axis=0).to(tl.float64)
        enough = reached >= target
        least += tl.maximum(tl.sum(enough.to(tl.int32)) - 1, 0) << shift
        above = tl.maximum(above, tl.max(tl.where(enough, 0.0, reached)))
        # An array of one tile stays in registers.
        unread = tl.where(size > TILE, 1, 0)
    return least ^ _SIGN, above


@triton.jit
def keep_from(array, size, cut, kept, from_end, by_distance, center):
    """Removes what lies below the key `cut`, and of those at it all but `kept`; returns the largest left.

    The first at the cut stay, where `from_end` the last.
    """
    largest = tl.full((TILE,), float("-inf"), tl.float32)
    before = kept * 0
    last_start = (size - 1) // TILE * TILE
    for offset in range(0, size, TILE):
        start = tl.where(from_end, last_start - offset, offset)
        at = start + tl.arange(0, TILE)
        score = tl.load(array + at, mask=at < size, other=float("-inf"))
        key = key_of(score, by_distance, center)
        is_equal = ((key == cut) & (score > float("-inf"))).to(tl.int32)
        num_equal = tl.sum(is_equal)
        place = tl.cumsum(is_equal, axis=0)
        rank = before + tl.where(from_end, num_equal + 1 - place, place)
        score = tl.where((key > cut) | ((is_equal != 0) & (rank <= kept)), score, float("-inf"))
        tl.store(array + at, score, mask=at < size)
        largest = tl.maximum(largest, score)
        before += num_equal
    tl.debug_barrier()
    return tl.max(largest)


@triton.jit
def distribution_of(array, size, largest):
    """Sum of e^(score - largest), and the entropy of the normalised probabilities in nats; float64."""
    mass = largest.to(tl.float64) * 0.0
    energy = mass
    for start in range(0, size, TILE):
        at = start + tl.arange(0, TILE)
        score = tl.load(array + at, mask=at < size, other=float("-inf"))
        weight = tl.exp(score - largest)
        mass += tl.sum(weight).to(tl.float64)
        energy += tl.sum(weight * tl.where(weight > 0.0, score - largest, 0.0)).to(tl.float64)
    return mass, tl.log(mass) - energy / mass
