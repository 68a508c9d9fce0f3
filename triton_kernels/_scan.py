"""The one pass over all logits of a row: maxima and masses of its blocks, NaN, and the race where nothing filters."""

import triton
import triton.language as tl
from pygen.triton_kernels._philox import TARGET_DRAWS, exponential_of, noise_words_of_run
from pygen.triton_kernels._scores import scores_of

BLOCK = tl.constexpr(64)  # tokens with a maximum of their own
SCAN_TILE = tl.constexpr(2048)  # tokens looked at together
MAX_PARTS = tl.constexpr(64)  # programs that share a row

LARGE_ID = tl.constexpr(2**30)  # above every id
_LEAST_VALUE = tl.constexpr(-3.4028234663852886e38)


@triton.jit
def race_value(score, exponential):
    """score - ln E: a survivor beats every removed token, whatever its noise."""
    value = score - tl.log(exponential)
    value = tl.where(value > _LEAST_VALUE, value, _LEAST_VALUE)
    return tl.where(score > float("-inf"), value, float("-inf"))


@triton.jit
def scan(
    begin, end, vocab_size, part, temperature, block_max, block_sum, sums_masses,
    part_value, part_id, part_nan, races, noise, noise_is_given, seed, step, stored, stores,
    logits, bias, bitmask, seen, banned, counts, tables, marked, counted, repetition, presence, frequency,
    largest_logit=0.0, log_sum=0.0, running=0.0,
):  # fmt: skip
    """Tokens [begin, end) of a row, `begin` a multiple of SCAN_TILE; all pointers are those of the row.

    block_max: (blocks,) float32, the largest score of a block that is no NaN. block_sum: where `sums_masses`, the sum
    of e^((score - largest) / temperature) over the block. part_nan: (MAX_PARTS,) int32. part_value, part_id: where
    `races`, the best of the part. stored: (vocab_size,) float32, the scores where `stores`. running: is added to each.
    """
    best_value = tl.full((SCAN_TILE,), float("-inf"), tl.float32)
    best_id = tl.full((SCAN_TILE,), 0, tl.int32)
    nan = tl.full((SCAN_TILE,), 0, tl.int32)
    for start in range(begin, end, SCAN_TILE):
        token = start + tl.arange(0, SCAN_TILE)
        inside = token < vocab_size
        x = scores_of(
            logits, token, inside, bias, bitmask, seen, banned, counts,
            tables, marked, counted, repetition, presence, frequency, largest_logit, log_sum,
        )  # fmt: skip
        x = x + running
        if stores:
            tl.store(stored + token, x, mask=inside)
        is_nan = x != x
        nan = nan | is_nan.to(tl.int32)
        x = tl.where(is_nan, float("-inf"), x)
        blocks = tl.reshape(x, (SCAN_TILE // BLOCK, BLOCK))
        largest = tl.max(blocks, axis=1)
        block = start // BLOCK + tl.arange(0, SCAN_TILE // BLOCK)
        tl.store(block_max + block, largest, mask=block * BLOCK < vocab_size)
        if sums_masses:
            top = tl.where(largest > float("-inf"), tl.math.div_rn(largest, temperature), 0.0)
            mass = tl.exp(tl.math.div_rn(blocks, temperature) - top[:, None])
            tl.store(block_sum + block, tl.sum(mass, axis=1), mask=block * BLOCK < vocab_size)
        if races:
            if noise_is_given:
                exponential = tl.load(noise + token, mask=inside, other=1.0)
            else:
                exponential = exponential_of(noise_words_of_run(seed, step, start, TARGET_DRAWS, SCAN_TILE))
            value = race_value(tl.math.div_rn(x, temperature), exponential)
            better = value > best_value
            best_value = tl.where(better, value, best_value)
            best_id = tl.where(better, token, best_id)
    tl.store(part_nan + part, tl.max(nan))
    if races:
        winning = tl.max(best_value)
        tl.store(part_value + part, winning)
        tl.store(part_id + part, tl.min(tl.where(best_value == winning, best_id, LARGE_ID)))
