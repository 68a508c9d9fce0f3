"""Exact selection in an array of scores in global memory, where -inf is a removed score: n-th largest, and by mass.

A program works on its array alone. Sums run over tiles of one size in one order, so that they do not depend on the
number of programs.
"""

import triton
import triton.language as tl

TILE = tl.constexpr(1024)  # scores looked at together
LANES = tl.constexpr(64)  # the same, for what compares them pair by pair
ALL = tl.constexpr(2**30)  # more than any array has
LEAST_KEY = tl.constexpr(-(2**31))

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
def key_at_least(threshold):
    """The key of the least float32 that is not below a float64."""
    rounded = threshold.to(tl.float32)
    return ordered_key(rounded) + (rounded.to(tl.float64) < threshold).to(tl.int32)


@triton.jit
def key_of(score, by_distance, center):
    """The key that a filter orders scores by, best first: the score, or its distance from `center`."""
    if by_distance:
        score = -tl.abs(score - center)
    return ordered_key(score)


@triton.jit
def cut_of(array, size, target, by_mass, by_distance, largest, center):
    """The largest key from which on the weights reach `target`, else LEAST_KEY, and the weight above that key.

    The weight of a score is 1, or e^(score - largest) where `by_mass`. A turn settles three bits of the key, the last
    one two: earlier turns found the thresholds past those two too high.
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
    """Removes the scores below the key `cut`, and of those at it all but `kept`; returns the largest left.

    The first at the cut stay, or the last where `from_end`.
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
        count = tl.cumsum(is_equal, axis=0)
        rank = before + tl.where(from_end, num_equal + 1 - count, count)
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


@triton.jit
def standard_deviation_of(array, size):
    """That of the scores that are not -inf, of which it takes the whole population; float64."""
    total = size.to(tl.float64) * 0.0
    count = size * 0
    for start in range(0, size, TILE):
        at = start + tl.arange(0, TILE)
        score = tl.load(array + at, mask=at < size, other=float("-inf"))
        total += tl.sum(tl.where(score > float("-inf"), score, 0.0).to(tl.float64))
        count += tl.sum((score > float("-inf")).to(tl.int32))
    mean = total / count
    squares = total * 0.0
    for start in range(0, size, TILE):
        at = start + tl.arange(0, TILE)
        score = tl.load(array + at, mask=at < size, other=float("-inf"))
        deviation = tl.where(score > float("-inf"), score.to(tl.float64) - mean, 0.0)
        squares += tl.sum(deviation * deviation)
    return tl.sqrt(squares / count)


@triton.jit
def rank_of(keys, size, at, key):
    """How many of keys[:size] come before each `key` at index `at`: larger ones, and equal ones of a lower index."""
    rank = tl.zeros((LANES,), tl.int32)
    for start in range(0, size, LANES):
        index = start + tl.arange(0, LANES)
        other = tl.load(keys + index, mask=index < size, other=float("-inf"))
        earlier = (other[None, :] == key[:, None]) & (index[None, :] < at[:, None])
        before = ((other[None, :] > key[:, None]) | earlier) & (index < size)[None, :]
        rank += tl.sum(before.to(tl.int32), axis=1)
    return rank
