"""What follows the filters of a row: the race of its survivors, their log-probabilities, and their ids."""

import triton
import triton.language as tl
from pygen.triton_kernels._philox import exponentials_of
from pygen.triton_kernels._scan import LARGE_ID, race_value
from pygen.triton_kernels._scores import reread
from pygen.triton_kernels._select import LEAST_KEY, TILE, distribution_of, ids_at, ordered_key, score_of_key


@triton.jit
def race(array, ids, listed, size, largest, noise):
    """The survivor with the largest score - ln E, the lowest id of several.

    Scores count from the `largest`, as float32 may not hold the noise beside it.
    """
    best_value = float("-inf")
    best_id = listed * 0
    for start in range(0, size, TILE):
        at = start + tl.arange(0, TILE)
        inside = at < size
        score = tl.load(array + at, mask=inside, other=float("-inf"))
        # A tile of a whole row seldom has a survivor, and a run of removed tokens costs its reading alone.
        if tl.max(score) > float("-inf"):
            token = ids_at(at, ids, listed)
            value = race_value(score - largest, exponentials_of(noise, token, inside))
            winning = tl.max(value)
            if winning > best_value:
                best_value = winning
                best_id = tl.min(tl.where(value == winning, token, LARGE_ID))
    return best_id


@triton.jit
def race_of_row(scores, vocab_size, temperature, largest, noise):
    """The winner among all tokens of a row, `largest` over the temperature, as `race` finds it among some."""
    best_value = float("-inf")
    best_id = vocab_size * 0
    for start in range(0, vocab_size, TILE):
        token = start + tl.arange(0, TILE)
        inside = token < vocab_size
        score = tl.math.div_rn(reread(scores, token, inside), temperature)
        value = race_value(score - largest, exponentials_of(noise, token, inside))
        winning = tl.max(value)
        if winning > best_value:
            best_value = winning
            best_id = tl.min(tl.where(value == winning, token, LARGE_ID))
    return best_id


@triton.jit
def write_logprobs(array, ids, listed, size, largest, winner, num_logprobs, logprob, top_ids, top_logprobs):
    """ln softmax of the winner, and the best `num_logprobs` of the array with theirs."""
    mass, _ = distribution_of(array, size, largest)
    log_sum = tl.log(mass)
    last_key = winner * 0 + 0x7FFFFFFF
    last_id = winner * 0 - 1
    for i in range(num_logprobs):
        best_key = winner * 0
        best_id = winner * 0 + LARGE_ID
        for start in range(0, size, TILE):
            at = start + tl.arange(0, TILE)
            inside = at < size
            score = tl.load(array + at, mask=inside, other=float("-inf"))
            token = ids_at(at, ids, listed)
            key = ordered_key(score)
            left = (score > float("-inf")) & ((key < last_key) | ((key == last_key) & (token > last_id)))
            highest = tl.max(tl.where(left, key, LEAST_KEY))
            lowest_id = tl.min(tl.where(left & (key == highest), token, LARGE_ID))
            if (lowest_id != LARGE_ID) & ((best_id == LARGE_ID) | (highest > best_key)):
                best_key = highest
                best_id = lowest_id
        found = best_id != LARGE_ID
        value = ((score_of_key(best_key).to(tl.float64) - largest) - log_sum).to(tl.float32)
        tl.store(top_ids + i, tl.where(found, best_id, -1).to(tl.int64))
        tl.store(top_logprobs + i, tl.where(found, value, float("-inf")))
        last_key = best_key
        last_id = best_id
    own = largest * 0.0 + float("-inf")
    for start in range(0, size, TILE):
        at = start + tl.arange(0, TILE)
        inside = at < size
        token = ids_at(at, ids, listed)
        score = tl.load(array + at, mask=inside & (token == winner), other=float("-inf"))
        own = tl.maximum(own, tl.max(score))
    tl.store(logprob, ((own.to(tl.float64) - largest) - log_sum).to(tl.float32))


@triton.jit
def write_no_logprobs(num_logprobs, logprob, top_ids, top_logprobs):
    """The log-probabilities of a row that is not OK."""
    tl.store(logprob, float("nan"))
    for i in range(num_logprobs):
        tl.store(top_ids + i, tl.full((), -1, tl.int64))
        tl.store(top_logprobs + i, float("nan"))


@triton.jit
def write_kept(array, ids, listed, size, largest, limit, kept_ids, kept_count, log_mass):
    """The ids of the survivors, ascending, of which `limit` fit; their number, and ln of their mass."""
    count = listed * 0
    mass = largest.to(tl.float64) * 0.0
    for start in range(0, size, TILE):
        at = start + tl.arange(0, TILE)
        score = tl.load(array + at, mask=at < size, other=float("-inf"))
        if tl.max(score) > float("-inf"):
            is_kept = score > float("-inf")
            index = count + tl.cumsum(is_kept.to(tl.int32), axis=0) - 1
            tl.store(kept_ids + index, ids_at(at, ids, listed), mask=is_kept & (index < limit))
            count += tl.sum(is_kept.to(tl.int32))
            mass += tl.sum(tl.exp(score - largest)).to(tl.float64)
    tl.store(kept_count, count)
    tl.store(log_mass, (largest.to(tl.float64) + tl.log(mass)).to(tl.float32))


@triton.jit
def write_kept_greedy(token, score, is_empty, kept_ids, kept_count, log_mass):
    """Keeps the token alone, or where `is_empty` nothing."""
    tl.store(kept_ids, token, mask=is_empty == 0)
    tl.store(kept_count, tl.where(is_empty, 0, 1))
    tl.store(log_mass, tl.where(is_empty, float("-inf"), score))
