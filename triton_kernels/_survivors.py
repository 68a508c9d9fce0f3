"""The survivors of a row after its scan: a short list where the first filter leaves few, else the whole row.

The maxima of the blocks bound what the first filter can keep. Only blocks that reach the bound are read again. Where
they turn out to be too few, so are the others, but none twice.
"""

import triton
import triton.language as tl
from pygen.triton_kernels._knobs import (
    MIN_P,
    MIN_P_ACTS,
    TOP_H_ACTS,
    TOP_K,
    TOP_K_ACTS,
    TOP_N_SIGMA_ACTS,
    TOP_P,
    TOP_P_ACTS,
)
from pygen.triton_kernels._scan import LARGE_ID
from pygen.triton_kernels._scores import reread
from pygen.triton_kernels._select import LEAST_KEY, TILE, bound_of, key_at_least, score_of_key
from pygen.triton_kernels._workspace import BLOCK, LIST_CAPACITY, MAX_PARTS, TOP_H_TOKENS

_NUCLEUS_BLOCKS = tl.constexpr(256)  # at most as many blocks are tried for a top_p that comes first
_LIST_BLOCKS = tl.constexpr(1024)  # at most as many blocks are read for a list
_LARGEST_FLOAT = tl.constexpr(3.4028234663852886e38)
_TWO_TO_MINUS_100 = tl.constexpr(2.0**-100)
_TINY = tl.constexpr(1e-37)


@triton.jit
def row_facts(block_max, blocks, part_nan, parts):
    """The largest score that is no NaN, and whether some score is NaN."""
    part = tl.arange(0, MAX_PARTS)
    nan = tl.max(tl.load(part_nan + part, mask=part < parts, other=0)) != 0
    return tl.max(group_maxima(block_max, blocks)), nan


@triton.jit
def group_size(blocks):
    """How many consecutive blocks share one of the TILE maxima of the second level."""
    return (blocks + TILE - 1) // TILE


@triton.jit
def group_maxima(block_max, blocks):
    """The maxima of the second level, each of a group of blocks; a tile."""
    size = group_size(blocks)
    first = tl.arange(0, TILE) * size
    largest = tl.full((TILE,), float("-inf"), tl.float32)
    for i in range(size):
        of_block = tl.load(block_max + first + i, mask=first + i < blocks, other=float("-inf"))
        largest = tl.maximum(largest, of_block)
    return largest


@triton.jit
def status_of(largest, nan):
    """RowStatus of a row."""
    status = tl.where(largest == float("inf"), 3, tl.where(largest == float("-inf"), 2, 0))
    return tl.where(nan, 1, status)


@triton.jit
def fitting_temperature(temperature, largest):
    """The temperature if the largest score of the row over it fits float32, else the one over which it is 2^100.

    At both, a score that does not equal the largest has no probability in float32.
    """
    magnitude = tl.abs(largest)
    quotient = tl.math.div_rn(magnitude, tl.where(temperature > 0.0, temperature, 1.0))
    return tl.where(quotient <= _LARGEST_FLOAT, temperature, magnitude * _TWO_TO_MINUS_100)


@triton.jit
def first_largest(scores, block_max, vocab_size, largest):
    """The lowest id of the largest score."""
    blocks = (vocab_size + BLOCK - 1) // BLOCK
    block = blocks * 0 + LARGE_ID
    for start in range(0, blocks, TILE):
        at = start + tl.arange(0, TILE)
        score = tl.load(block_max + at, mask=at < blocks, other=float("nan"))
        block = tl.minimum(block, tl.min(tl.where(score == largest, at, LARGE_ID)))
    block = tl.where(block < blocks, block, 0)
    token = block * BLOCK + tl.arange(0, BLOCK)
    x = reread(scores, token, token < vocab_size)
    lowest = tl.min(tl.where((x == largest) & (token < vocab_size), token, LARGE_ID))
    return tl.where(lowest < LARGE_ID, lowest, 0)


@triton.jit
def mass_of_row(work, blocks, temperature, largest):
    """Sum of e^(score - largest) over a row whose scan summed its blocks; float64."""
    mass = largest.to(tl.float64) * 0.0
    for start in range(0, blocks, TILE):
        block = start + tl.arange(0, TILE)
        top = tl.load(work.block_max + block, mask=block < blocks, other=float("-inf"))
        part = tl.load(work.block_sum + block, mask=block < blocks, other=0.0)
        scaled = part * tl.exp(tl.math.div_rn(top, temperature) - largest)
        mass += tl.sum(tl.where(top > float("-inf"), scaled, 0.0)).to(tl.float64)
    return mass


@triton.jit
def gather_or_fill(scores, work, filters, vocab_size, temperature, largest):
    """The scores over temperature that the filters start from.

    Returns (listed, size, total mass). Where listed > 0, the scores are work.list_scores[:listed] with the ids
    work.list_ids, ascending; else they are `scores.stored`. size: their number. total mass: that of the whole row,
    float64, for a top_p that comes first; else negative.

    largest: over temperature.
    """
    blocks = (vocab_size + BLOCK - 1) // BLOCK
    # The first filter that acts bounds the list, if it can.
    first = filters.flags & -filters.flags
    nucleus = first == TOP_P_ACTS
    by_value = first == MIN_P_ACTS
    wanted = filters.min_tokens_to_keep
    if first == TOP_H_ACTS:
        wanted = wanted * 0 + TOP_H_TOKENS
    if first == TOP_K_ACTS:
        wanted = tl.load(filters.knobs + TOP_K).to(tl.int32)
    if nucleus:
        wanted = tl.maximum(tl.minimum(blocks // 8, _NUCLEUS_BLOCKS), wanted)

    total_mass = largest.to(tl.float64) * 0.0 - 1.0
    if nucleus:
        total_mass = mass_of_row(work, blocks, temperature, largest)
        # Over a temperature that did not fit, the sums of blocks are NaN. Then a list with all ties has all the mass.
        total_mass = tl.where(total_mass == total_mass, total_mass, -1.0)
    reread_from = largest * 0.0 + float("inf")
    listed = blocks * 0
    size = vocab_size
    bounded = (first > TOP_N_SIGMA_ACTS) & (first <= MIN_P_ACTS)
    if bounded & (wanted <= _LIST_BLOCKS // 2) & (wanted <= blocks // group_size(blocks) // 4 * 3):
        least = largest * 0.0 + float("inf")
        if by_value:
            min_p = tl.load(filters.knobs + MIN_P).to(tl.float64)
            least = score_of_key(key_at_least(largest.to(tl.float64) + tl.log(min_p))) * temperature
            # Products round.
            least -= tl.abs(least) * 1e-6 + _TINY
        lowest, found = list_best_blocks(work, blocks, wanted, least)
        if found <= _LIST_BLOCKS:
            reread_from = lowest
            threshold = tl.math.div_rn(lowest, temperature)
            length = found * 0
            mass = total_mass * 0.0
            for start in range(0, found * BLOCK, TILE):
                at = start + tl.arange(0, TILE)
                block = tl.load(work.block_list + at // BLOCK, mask=at < found * BLOCK, other=0)
                token = block * BLOCK + at % BLOCK
                inside = (at < found * BLOCK) & (token < vocab_size)
                score = tl.math.div_rn(reread(scores, token, inside), temperature)
                tl.store(scores.stored + token, score, mask=inside)
                taken = inside & (score >= threshold) & (score > float("-inf"))
                index = length + tl.cumsum(taken.to(tl.int32), axis=0) - 1
                fits = taken & (index < LIST_CAPACITY)
                tl.store(work.list_scores + index, score, mask=fits)
                tl.store(work.list_ids + index, token, mask=fits)
                length += tl.sum(taken.to(tl.int32))
                mass += tl.sum(tl.where(taken, tl.exp(score - largest), 0.0)).to(tl.float64)
            enough = length <= LIST_CAPACITY
            if nucleus:
                top_p = tl.load(filters.knobs + TOP_P).to(tl.float64)
                enough = enough & (mass * (1 - 1e-6) >= top_p * total_mass)
            listed = tl.where(enough, length, 0)
            size = tl.where(listed > 0, length, vocab_size)
            tl.debug_barrier()

    if (listed == 0) & ((scores.is_stored == 0) | (temperature != 1.0)):
        for start in range(0, vocab_size, TILE):
            token = start + tl.arange(0, TILE)
            inside = token < vocab_size
            top = tl.load(work.block_max + token // BLOCK, mask=inside, other=float("-inf"))
            done = (top > float("-inf")) & (top >= reread_from)
            x = reread(scores, token, inside & (done == 0))
            tl.store(scores.stored + token, tl.math.div_rn(x, temperature), mask=inside & (done == 0))
        tl.debug_barrier()
    return listed, size, total_mass


@triton.jit
def list_best_blocks(work, blocks, wanted, least):
    """Lists the blocks that reach a score, at most `least`, which `wanted` blocks reach and seldom many more.

    Returns that score, -inf if there are fewer, and the number of listed blocks.
    """
    maxima = group_maxima(work.block_max, blocks)
    lowest = least
    found = blocks
    narrows = blocks * 0 + 1
    while narrows != 0:
        bound = bound_of(maxima, wanted)
        lowest = tl.minimum(tl.where(bound == LEAST_KEY, float("-inf"), score_of_key(bound)), least)
        before = found
        found = list_blocks(work.block_max, blocks, lowest, work.block_list)
        # The best blocks may share groups. Then the maxima of the listed ones say more than those of groups.
        narrows = ((lowest < least) & (found > 2 * wanted) & (found < before) & (found <= TILE)).to(tl.int32)
        if narrows != 0:
            lane = tl.arange(0, TILE)
            block = tl.load(work.block_list + lane, mask=lane < found, other=0)
            maxima = tl.load(work.block_max + block, mask=lane < found, other=float("-inf"))
            tl.debug_barrier()
    return lowest, found


@triton.jit
def list_blocks(block_max, blocks, lowest, block_list):
    """Lists the blocks whose largest score is at least `lowest` and not -inf; returns their number."""
    size = group_size(blocks)
    first = tl.arange(0, TILE) * size
    found = tl.full((TILE,), 0, tl.int32)
    for i in range(size):
        top = tl.load(block_max + first + i, mask=first + i < blocks, other=float("-inf"))
        found += ((top > float("-inf")) & (top >= lowest)).to(tl.int32)
    index = tl.cumsum(found, axis=0) - found
    for i in range(size):
        top = tl.load(block_max + first + i, mask=first + i < blocks, other=float("-inf"))
        reaches = (top > float("-inf")) & (top >= lowest)
        tl.store(block_list + index, first + i, mask=reaches)
        index += reaches.to(tl.int32)
    tl.debug_barrier()
    return tl.sum(found)
