"""What follows the filters of a row: the race of its survivors, log-probabilities, and the sequence it extends."""

import triton
import triton.language as tl
from pygen.triton_kernels._philox import TARGET_DRAWS, exponential_of, noise_words
from pygen.triton_kernels._scan import LARGE_ID, race_value
from pygen.triton_kernels._select import TILE, distribution_of, ordered_key, score_of_key


@triton.jit
def ids_at(at, ids, listed):
    """The token ids of places of an array: the first `listed` are in `ids`, the others are the places themselves."""
    return tl.where(at < listed, tl.load(ids + at, mask=at < listed, other=0), at)


@triton.jit
def race(array, ids, listed, size, largest, noise, noise_is_given, seed, step):
    """The survivor with the largest score - ln E, the lowest id of several; scores count from the `largest`, beside
    which float32 may not hold the noise."""
    best_value = float("-inf")
    best_id = step.to(tl.int32) * 0
    for start in range(0, size, TILE):
        at = start + tl.arange(0, TILE)
        inside = at < size
        score = tl.load(array + at, mask=inside, other=float("-inf"))
        # Seldom has a tile of a whole row no survivor; a run of removed tokens costs its reading alone.
        if tl.max(score) > float("-inf"):
            token = ids_at(at, ids, listed)
            if noise_is_given:
                exponential = tl.load(noise + token, mask=inside, other=1.0)
            else:
                exponential = exponential_of(noise_words(seed, step, token, TARGET_DRAWS))
            value = race_value(score - largest, exponential)
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
            highest = tl.max(tl.where(left, key, -(2**31)))
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
    # The winner's own score is that of its place.
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
    """Those of a row that is not OK."""
    tl.store(logprob, float("nan"))
    for i in range(num_logprobs):
        tl.store(top_ids + i, tl.full((), -1, tl.int64))
        tl.store(top_logprobs + i, float("nan"))


@triton.jit
def extend_sequence(
    token, row, rows, column, sequences, sequences_stride, history, history_stride,
    finished, num_generated, unfinished, eos, eos_count, pad_token_id, ticket, steps, counts_steps,
):  # fmt: skip
    """Appends the token, or the pad token to a finished row; returns which.

    It goes to `column`, where `counts_steps` as many further as the row has steps, to which 1 is added.

    The last row to come counts: `ticket` holds in its upper half how many rows came, below how many go on, and is left
    at zero.
    """
    was_finished = tl.load(finished + row) != 0
    token = tl.where(was_finished, pad_token_id, token)
    ends = was_finished
    for i in range(eos_count):
        ends = ends | (token == tl.load(eos + i))
    if was_finished == 0:
        tl.store(num_generated + row, tl.load(num_generated + row) + 1)
        tl.store(finished + row, ends.to(tl.uint8))
    if counts_steps:
        step = tl.load(steps + row)
        tl.store(steps + row, step + 1)
        column += step
    tl.store(sequences + row * sequences_stride + column, token)
    tl.store(history + row * history_stride + column, token)
    mine = tl.where(ends, 0, 1).to(tl.int64)
    before = tl.atomic_add(ticket, mine + (1 << 32))
    if (before >> 32) == rows - 1:
        tl.store(unfinished, (before & 0xFFFFFFFF) + mine)
        tl.store(ticket, mine * 0)
    return token
