"""The one pass over all logits of a row: maxima and masses of its blocks, NaN, and the race where nothing filters."""

import triton
import triton.language as tl
from pygen.triton_kernels._philox import exponentials_of_run
from pygen.triton_kernels._scores import scores_of
from pygen.triton_kernels._workspace import BLOCK

SCAN_TILE = tl.constexpr(2048)  # tokens looked at together

LARGE_ID = tl.constexpr(2**30)  # above every id
LEAST_VALUE = tl.constexpr(-3.4028234663852886e38)  # the least float32


@triton.jit
def race_value(score, exponential):
    """score - ln E: a survivor beats every removed token, whatever its noise."""
    value = score - tl.log(exponential)
    value = tl.where(value > LEAST_VALUE, value, LEAST_VALUE)
    return tl.where(score > float("-inf"), value, float("-inf"))


@triton.jit
def scan(
    scores, work, noise, begin, end, vocab_size, part, temperature, sums_masses, races, stores,
    largest_logit=0.0, log_sum=0.0, added=0.0,
):  # fmt: skip
    """Scans the tokens [begin, end) of a row, `begin` a multiple of SCAN_TILE.

    Writes `work.block_max` from the scores that are no NaN, `work.part_nan`, and

        work.block_sum      where `sums_masses`: the sums of e^((score - largest of the block) / temperature)
        work.part_value,    where `races`: the best of the part
        work.part_id
        scores.stored       where `stores`: the scores

    largest_logit, log_sum: see `scores_of`. added: to every score.
    """
    best_value = tl.full((SCAN_TILE,), float("-inf"), tl.float32)
    best_id = tl.full((SCAN_TILE,), 0, tl.int32)
    nan = tl.full((SCAN_TILE,), 0, tl.int32)
    for start in range(begin, end, SCAN_TILE):
        token = start + tl.arange(0, SCAN_TILE)
        inside = token < vocab_size
        x = scores_of(scores, token, inside, largest_logit, log_sum)
        x = x + added
        if stores:
            tl.store(scores.stored + token, x, mask=inside)
        is_nan = x != x
        nan = nan | is_nan.to(tl.int32)
        x = tl.where(is_nan, float("-inf"), x)
        blocks = tl.reshape(x, (SCAN_TILE // BLOCK, BLOCK))
        largest = tl.max(blocks, axis=1)
        block = start // BLOCK + tl.arange(0, SCAN_TILE // BLOCK)
        tl.store(work.block_max + block, largest, mask=block * BLOCK < vocab_size)
        if sums_masses:
            top = tl.where(largest > float("-inf"), tl.math.div_rn(largest, temperature), 0.0)
            mass = tl.exp(tl.math.div_rn(blocks, temperature) - top[:, None])
            tl.store(work.block_sum + block, tl.sum(mass, axis=1), mask=block * BLOCK < vocab_size)
        if races:
            exponential = exponentials_of_run(noise, start, inside, SCAN_TILE)
            value = race_value(tl.math.div_rn(x, temperature), exponential)
            better = value > best_value
            best_value = tl.where(better, value, best_value)
            best_id = tl.where(better, token, best_id)
    tl.store(work.part_nan + part, tl.max(nan))
    if races:
        winning = tl.max(best_value)
        tl.store(work.part_value + part, winning)
        tl.store(work.part_id + part, tl.min(tl.where(best_value == winning, best_id, LARGE_ID)))
