"""Exact selection in an array of scores in global memory, where -inf is a removed score: n-th largest, and by mass.

A program works on its array alone. Sums run over tiles of one size in one order, so that they do not depend on the
number of programs.
"""

import triton
import triton.language as tl

TILE = tl.constexpr(1024)  # scores looked at together
LANES = tl.constexpr(64)  # the same, for what compares them pair by pair
FEW = tl.constexpr(128)  # scores of an array whose cut comparing pairs finds in one turn
OTHERS = tl.constexpr(16)  # that they are compared with together
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
def weight_of(score, by_mass, largest):
    """What a score adds to the weight that `cut_of` reaches."""
    return tl.where(score > float("-inf"), tl.where(by_mass, tl.exp(score - largest), 1.0), 0.0)


@triton.jit
def reached_of(key, weight, least, shift):
    """(8,) float64: the weight of a tile's keys from each threshold on that the next three bits of a cut may make."""
    # With keys along the last axis, every thread has all thresholds and the keys that it loaded.
    thresholds = (least + (tl.arange(0, 8) << shift)) ^ _SIGN
    reaching = tl.where(key[None, :] >= thresholds[:, None], weight[None, :], 0.0)
    return tl.sum(reaching, axis=1).to(tl.float64)


@triton.jit
def next_digit(least, shift, reached, target):
    """Settles three bits of a cut, `least` with its sign flipped, by what `reached_of` thresholds.

    Returns it, the weight that it reaches, and the most that thresholds above it reach.
    """
    enough = reached >= target
    digit = tl.maximum(tl.sum(enough.to(tl.int32)) - 1, 0)
    weight = tl.min(tl.where(enough, reached, float("inf")))
    return least + (digit << shift), weight, tl.max(tl.where(enough, 0.0, reached))


@triton.jit
def cut_of(array, size, target, by_mass, by_distance, largest, center):
    """The largest key from which on the weights reach `target`, else LEAST_KEY, and the weight above that key.

    By number, the cut may be any key that as many scores reach.
    The weight of a score is 1, or e^(score - largest) where `by_mass`.
    array: (size,) float32. target, and the weight: float64.
    """
    cut = size * 0 + LEAST_KEY
    above = target * 0.0
    if size <= FEW:
        cut, above = _cut_of_few(array, size, target, by_mass, by_distance, largest, center)
    else:
        cut, above = _cut_of_many(array, size, target, by_mass, by_distance, largest, center)
    return cut, above


@triton.jit
def _cut_of_few(array, size, target, by_mass, by_distance, largest, center):
    """Compares every score with every other."""
    lane = tl.arange(0, FEW)
    score = tl.load(array + lane, mask=lane < size, other=float("-inf"))
    key = key_of(score, by_distance, center)
    reached = tl.zeros((FEW,), tl.float64)
    for start in range(0, size, OTHERS):
        at = start + tl.arange(0, OTHERS)
        other = tl.load(array + at, mask=at < size, other=float("-inf"))
        weight = weight_of(other, by_mass, largest)
        reaches = key_of(other, by_distance, center)[:, None] >= key[None, :]
        reached += tl.sum(tl.where(reaches, weight[:, None], 0.0), axis=0).to(tl.float64)
    enough = reached >= target
    cut = tl.max(tl.where(enough & (score > float("-inf")), key, LEAST_KEY))
    return cut, tl.max(tl.where(enough, 0.0, reached))


@triton.jit
def _cut_of_many(array, size, target, by_mass, by_distance, largest, center):
    """A turn settles three bits of the key, the last one two, as earlier ones found the higher thresholds too high."""
    none = size * 0
    least = none
    above = target * 0.0
    key = tl.full((TILE,), 0, tl.int32)
    weight = tl.full((TILE,), 0.0, tl.float32)
    unread = none + 1
    turn = none
    while turn < _TURNS:
        shift = tl.maximum(29 - 3 * turn, 0)
        reached = tl.full((8,), 0.0, tl.float64)
        for start in range(0, size, TILE):
            if unread != 0:
                at = start + tl.arange(0, TILE)
                score = tl.load(array + at, mask=at < size, other=float("-inf"))
                weight = weight_of(score, by_mass, largest)
                key = key_of(score, by_distance, center)
            reached += reached_of(key, weight, least, shift)
        least, of_least, of_higher = next_digit(least, shift, reached, target)
        above = tl.maximum(above, of_higher)
        # An array of one tile stays in registers.
        unread = tl.where(size > TILE, 1, 0)
        turn = tl.where((by_mass == 0) & (of_least == target), _TURNS, turn + 1)
    return least ^ _SIGN, above


@triton.jit
def bound_of(scores, wanted):
    """A key that at least `wanted` of a tile of scores reach, and seldom many more; LEAST_KEY if there are fewer."""
    none = wanted * 0
    least = none
    target = wanted.to(tl.float64)
    key = ordered_key(scores)
    weight = weight_of(scores, False, 0.0)
    turn = none
    while turn < _TURNS:
        shift = tl.maximum(29 - 3 * turn, 0)
        least, of_least, _ = next_digit(least, shift, reached_of(key, weight, least, shift), target)
        turn = tl.where(of_least <= 1.25 * target, _TURNS, turn + 1)
    return least ^ _SIGN


@triton.jit
def keep_from(array, size, cut, kept, from_end, by_distance, center):
    """Removes the scores below the key `cut`, and of those at it all but `kept`, the first or `from_end` the last.

    Returns the largest that is left, and how many are.
    """
    largest = tl.full((TILE,), float("-inf"), tl.float32)
    left = tl.full((TILE,), 0, tl.int32)
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
        left += (score > float("-inf")).to(tl.int32)
        before += num_equal
    tl.debug_barrier()
    return tl.max(largest), tl.sum(left)


@triton.jit
def ids_at(at, ids, listed):
    """The token ids at indices of an array: `ids` has the first `listed`; beyond, an index is the id."""
    return tl.where(at < listed, tl.load(ids + at, mask=at < listed, other=0), at)


@triton.jit
def compact(array, ids, listed, size, list_scores, list_ids):
    """Lists the scores of an array that are left, in its order. The list may be the array itself, and `ids` the list's.

    ids, listed: see `ids_at`.
    """
    length = size * 0
    for start in range(0, size, TILE):
        at = start + tl.arange(0, TILE)
        score = tl.load(array + at, mask=at < size, other=float("-inf"))
        left = score > float("-inf")
        found = tl.sum(left.to(tl.int32))
        if found > 0:
            token = ids_at(at, ids, listed)
            index = length + tl.cumsum(left.to(tl.int32), axis=0) - 1
            # Every thread has read its scores of the tile before one writes.
            tl.debug_barrier()
            tl.store(list_scores + index, score, mask=left)
            tl.store(list_ids + index, token, mask=left)
            length += found
    tl.debug_barrier()


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
    for start in range(0, size, OTHERS):
        index = start + tl.arange(0, OTHERS)
        other = tl.load(keys + index, mask=index < size, other=float("-inf"))
        earlier = (other[:, None] == key[None, :]) & (index[:, None] < at[None, :])
        before = ((other[:, None] > key[None, :]) | earlier) & (index < size)[:, None]
        rank += tl.sum(before.to(tl.int32), axis=0)
    return rank
