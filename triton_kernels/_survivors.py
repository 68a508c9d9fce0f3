"""The survivors of a row after its scan: a short list where the first filter leaves few, else the whole row.

The maxima of the blocks bound what the first filter can keep. Only blocks that reach the bound are read again; where
that turns out to be too little, so are the others, but none twice.
"""

import triton
import triton.language as tl
from pygen.triton_kernels._filters import (
    MIN_P,
    MIN_P_ACTS,
    TOP_H_ACTS,
    TOP_H_TOKENS,
    TOP_K,
    TOP_K_ACTS,
    TOP_P,
    TOP_P_ACTS,
    key_at_least,
)
from pygen.triton_kernels._philox import TARGET_DRAWS, exponential_of, noise_words
from pygen.triton_kernels._scan import BLOCK, LARGE_ID, MAX_PARTS, race_value
from pygen.triton_kernels._scores import scores_of
from pygen.triton_kernels._select import TILE, cut_of, score_of_key

LIST_ROOM = tl.constexpr(4096)  # scores of a short list

_NUCLEUS = tl.constexpr(256)  # as many blocks are tried for a top_p that comes first
_LIST_BLOCKS = tl.constexpr(1024)  # at most as many blocks are read for a list
_LEAST_KEY = tl.constexpr(-(2**31))
_LARGEST_FLOAT = tl.constexpr(3.4028234663852886e38)
_TWO_TO_MINUS_100 = tl.constexpr(2.0**-100)


@triton.jit
def reread(
    token, inside, stored, is_stored,
    logits, bias, bitmask, seen, banned, counts, tables, marked, counted, repetition, presence, frequency,
):  # fmt: skip
    """The scores of tokens of a scanned row, from where the scan stored them or from the logits."""
    if is_stored:
        x = tl.load(stored + token, mask=inside, other=float("-inf"))
    else:
        x = scores_of(
            logits, token, inside, bias, bitmask, seen, banned, counts,
            tables, marked, counted, repetition, presence, frequency,
        )  # fmt: skip
    return x


@triton.jit
def row_facts(block_max, blocks, part_nan, parts):
    """The largest score that is no NaN, and whether there is a NaN."""
    largest = tl.full((TILE,), float("-inf"), tl.float32)
    for start in range(0, blocks, TILE):
        block = start + tl.arange(0, TILE)
        largest = tl.maximum(largest, tl.load(block_max + block, mask=block < blocks, other=float("-inf")))
    part = tl.arange(0, MAX_PARTS)
    nan = tl.max(tl.load(part_nan + part, mask=part < parts, other=0)) != 0
    return tl.max(largest), nan


@triton.jit
def status_of(largest, nan):
    """RowStatus of a row."""
    status = tl.where(largest == float("inf"), 3, tl.where(largest == float("-inf"), 2, 0))
    return tl.where(nan, 1, status)


@triton.jit
def fitting_temperature(temperature, largest):
    """The temperature, or, where the row's largest score would leave float32's range over it, the one that makes it
    2^100. At both, a score that is not equal to the largest has no probability in float32."""
    magnitude = tl.abs(largest)
    quotient = tl.math.div_rn(magnitude, tl.where(temperature > 0.0, temperature, 1.0))
    return tl.where(quotient <= _LARGEST_FLOAT, temperature, magnitude * _TWO_TO_MINUS_100)


@triton.jit
def first_largest(
    largest, block_max, blocks, vocab_size, stored, is_stored,
    logits, bias, bitmask, seen, banned, counts, tables, marked, counted, repetition, presence, frequency,
):  # fmt: skip
    """The lowest id of the largest score."""
    block = blocks * 0 + LARGE_ID
    for start in range(0, blocks, TILE):
        at = start + tl.arange(0, TILE)
        score = tl.load(block_max + at, mask=at < blocks, other=float("nan"))
        block = tl.minimum(block, tl.min(tl.where(score == largest, at, LARGE_ID)))
    block = tl.where(block < blocks, block, 0)
    token = block * BLOCK + tl.arange(0, BLOCK)
    x = reread(
        token, token < vocab_size, stored, is_stored,
        logits, bias, bitmask, seen, banned, counts, tables, marked, counted, repetition, presence, frequency,
    )  # fmt: skip
    lowest = tl.min(tl.where((x == largest) & (token < vocab_size), token, LARGE_ID))
    return tl.where(lowest < LARGE_ID, lowest, 0)


@triton.jit
def race_of_row(
    largest, temperature, vocab_size, noise, noise_is_given, seed, step, stored, is_stored,
    logits, bias, bitmask, seen, banned, counts, tables, marked, counted, repetition, presence, frequency,
):  # fmt: skip
    """The winner among all tokens of a row, `largest` over the temperature, as `race` finds it among some."""
    best_value = float("-inf")
    best_id = vocab_size * 0
    for start in range(0, vocab_size, TILE):
        token = start + tl.arange(0, TILE)
        inside = token < vocab_size
        x = reread(
            token, inside, stored, is_stored,
            logits, bias, bitmask, seen, banned, counts, tables, marked, counted, repetition, presence, frequency,
        )  # fmt: skip
        if noise_is_given:
            exponential = tl.load(noise + token, mask=inside, other=1.0)
        else:
            exponential = exponential_of(noise_words(seed, step, token, TARGET_DRAWS))
        value = race_value(tl.math.div_rn(x, temperature) - largest, exponential)
        winning = tl.max(value)
        if winning > best_value:
            best_value = winning
            best_id = tl.min(tl.where(value == winning, token, LARGE_ID))
    return best_id


@triton.jit
def mass_of_row(block_max, block_sum, blocks, temperature, largest):
    """Sum of e^(score - largest) over a row whose scan summed its blocks; float64."""
    mass = largest.to(tl.float64) * 0.0
    for start in range(0, blocks, TILE):
        block = start + tl.arange(0, TILE)
        top = tl.load(block_max + block, mask=block < blocks, other=float("-inf"))
        part = tl.load(block_sum + block, mask=block < blocks, other=0.0)
        scaled = part * tl.exp(tl.math.div_rn(top, temperature) - largest)
        mass += tl.sum(tl.where(top > float("-inf"), scaled, 0.0)).to(tl.float64)
    return mass


@triton.jit
def gather_or_fill(
    flags, knobs, rows, min_tokens_to_keep, temperature, largest,
    vocab_size, block_max, block_sum, block_list, list_scores, list_ids, stored, is_stored,
    logits, bias, bitmask, seen, banned, counts, tables, marked, counted, repetition, presence, frequency,
):  # fmt: skip
    """The scores over temperature that the filters start from.

    Returns (listed, size, total mass). listed > 0: they are list_scores[:listed], ids in list_ids, ascending; 0: they
    are `stored`, all of them. size: how many they are. total mass: of the whole row, float64, where top_p comes first;
    else negative.

    flags: the bit of a filter tells whether it acts. knobs: those of the row, `rows` apart. largest: over temperature.
    """
    blocks = (vocab_size + BLOCK - 1) // BLOCK
    # The first filter that acts tells whether a bound is known.
    first = flags & -flags
    nucleus = first == TOP_P_ACTS
    by_value = first == MIN_P_ACTS
    wanted = min_tokens_to_keep
    if first == TOP_H_ACTS:
        wanted = wanted * 0 + TOP_H_TOKENS
    if first == TOP_K_ACTS:
        wanted = tl.load(knobs + TOP_K * rows).to(tl.int32)
    if nucleus:
        wanted = tl.maximum(tl.minimum(blocks // 8, _NUCLEUS), wanted)

    total_mass = largest.to(tl.float64) * 0.0 - 1.0
    if nucleus:
        total_mass = mass_of_row(block_max, block_sum, blocks, temperature, largest)
        # Sums over a temperature that did not fit are none; then the list, if it takes all ties, has all the mass.
        total_mass = tl.where(total_mass == total_mass, total_mass, -1.0)
    threshold = largest * 0.0 + float("inf")
    listed = blocks * 0
    size = vocab_size
    few = (first > 0) & (first <= MIN_P_ACTS) & (wanted <= _LIST_BLOCKS // 2)
    if few & (wanted <= blocks // 2):
        cut, _ = cut_of(block_max, blocks, wanted.to(tl.float64), False, False, largest, 0.0)
        lowest = tl.where(cut == _LEAST_KEY, float("-inf"), tl.math.div_rn(score_of_key(cut), temperature))
        if by_value:
            min_p = tl.load(knobs + MIN_P * rows).to(tl.float64)
            least = score_of_key(key_at_least(largest.to(tl.float64) + tl.log(min_p)))
            lowest = tl.minimum(lowest, least)
        found = _list_blocks(block_max, blocks, temperature, lowest, block_list)
        if found <= _LIST_BLOCKS:
            threshold = lowest
            length = found * 0
            mass = total_mass * 0.0
            for start in range(0, found * BLOCK, TILE):
                at = start + tl.arange(0, TILE)
                block = tl.load(block_list + at // BLOCK, mask=at < found * BLOCK, other=0)
                token = block * BLOCK + at % BLOCK
                inside = (at < found * BLOCK) & (token < vocab_size)
                x = reread(
                    token, inside, stored, is_stored,
                    logits, bias, bitmask, seen, banned, counts,
                    tables, marked, counted, repetition, presence, frequency,
                )  # fmt: skip
                score = tl.math.div_rn(x, temperature)
                tl.store(stored + token, score, mask=inside)
                taken = inside & (score >= threshold) & (score > float("-inf"))
                place = length + tl.cumsum(taken.to(tl.int32), axis=0) - 1
                fits = taken & (place < LIST_ROOM)
                tl.store(list_scores + place, score, mask=fits)
                tl.store(list_ids + place, token, mask=fits)
                length += tl.sum(taken.to(tl.int32))
                mass += tl.sum(tl.where(taken, tl.exp(score - largest), 0.0)).to(tl.float64)
            enough = length <= LIST_ROOM
            if nucleus:
                top_p = tl.load(knobs + TOP_P * rows).to(tl.float64)
                enough = enough & (mass * (1 - 1e-6) >= top_p * total_mass)
            listed = tl.where(enough, length, 0)
            size = tl.where(listed > 0, length, vocab_size)
            tl.debug_barrier()

    if (listed == 0) & ((is_stored == 0) | (temperature != 1.0)):
        for start in range(0, vocab_size, TILE):
            token = start + tl.arange(0, TILE)
            inside = token < vocab_size
            top = tl.load(block_max + token // BLOCK, mask=inside, other=float("-inf"))
            known = (top > float("-inf")) & (tl.math.div_rn(top, temperature) >= threshold)
            x = reread(
                token, inside & (known == 0), stored, is_stored,
                logits, bias, bitmask, seen, banned, counts, tables, marked, counted, repetition, presence, frequency,
            )  # fmt: skip
            tl.store(stored + token, tl.math.div_rn(x, temperature), mask=inside & (known == 0))
        tl.debug_barrier()
    return listed, size, total_mass


@triton.jit
def _list_blocks(block_max, blocks, temperature, threshold, block_list):
    """Lists the blocks whose largest score over the temperature reaches a threshold; returns how many."""
    found = blocks * 0
    for start in range(0, blocks, TILE):
        block = start + tl.arange(0, TILE)
        top = tl.load(block_max + block, mask=block < blocks, other=float("-inf"))
        reaches = (top > float("-inf")) & (tl.math.div_rn(top, temperature) >= threshold)
        place = found + tl.cumsum(reaches.to(tl.int32), axis=0) - 1
        tl.store(block_list + place, block, mask=reaches)
        found += tl.sum(reaches.to(tl.int32))
    tl.debug_barrier()
    return found
