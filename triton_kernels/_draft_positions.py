"""What `verify_draft` computes of one position: its largest logit, its log-sum-exp, and the race for its token."""

import triton
import triton.language as tl
from pygen.triton_kernels._philox import exponentials_of_run
from pygen.triton_kernels._scan import LARGE_ID, race_value
from pygen.triton_kernels._survivors import fitting_temperature, status_of

_TILE = tl.constexpr(2048)

# The weight of a token in the race.
TARGET = tl.constexpr(0)  # p
OTHERS = tl.constexpr(1)  # p, but none for the draft
RESIDUAL = tl.constexpr(2)  # max(p - q, 0)


@triton.jit
def largest_logit(logits, vocab_size):
    """(largest, its lowest id, whether there is a NaN) of a position's logits that are no NaN."""
    best = tl.full((_TILE,), float("-inf"), tl.float32)
    best_id = tl.full((_TILE,), LARGE_ID, tl.int32)
    nan = tl.full((_TILE,), 0, tl.int32)
    for start in range(0, vocab_size, _TILE):
        token = start + tl.arange(0, _TILE)
        inside = token < vocab_size
        x = tl.load(logits + token, mask=inside, other=0.0).to(tl.float32)
        nan = nan | (inside & (x != x)).to(tl.int32)
        # Nothing but -inf has a lowest id too.
        better = inside & ((x > best) | ((x == best) & (token < best_id)))
        best = tl.where(better, x, best)
        best_id = tl.where(better, token, best_id)
    largest = tl.max(best)
    lowest = tl.min(tl.where(best == largest, best_id, LARGE_ID))
    return largest, tl.where(lowest < LARGE_ID, lowest, 0), tl.max(nan) != 0


@triton.jit
def log_sum_exp(logits, vocab_size, temperature):
    """(largest score, ln of the sum of e^(score - largest) in float64, status, temperature) of a position.

    Scores are over the temperature. Where that does not fit, a second pass takes the one that does.
    """
    max_logit = tl.full((_TILE,), float("-inf"), tl.float32)
    best = max_logit
    mass = tl.full((_TILE,), 0.0, tl.float32)
    nan = tl.full((_TILE,), 0, tl.int32)
    passes = vocab_size * 0 + 1
    while passes != 0:
        best = tl.full((_TILE,), float("-inf"), tl.float32)
        mass = tl.full((_TILE,), 0.0, tl.float32)
        for start in range(0, vocab_size, _TILE):
            token = start + tl.arange(0, _TILE)
            x = tl.load(logits + token, mask=token < vocab_size, other=float("-inf")).to(tl.float32)
            is_nan = x != x
            nan = nan | is_nan.to(tl.int32)
            x = tl.where(is_nan, float("-inf"), x)
            max_logit = tl.maximum(max_logit, x)
            score = tl.math.div_rn(x, temperature)
            top = tl.maximum(best, score)
            shift = tl.where(top > float("-inf"), top, 0.0)
            mass = mass * tl.exp(best - shift) + tl.exp(score - shift)
            best = top
        fitting = fitting_temperature(temperature, tl.max(max_logit))
        passes = ((fitting != temperature) & (fitting < float("inf"))).to(tl.int32)
        temperature = tl.where(passes != 0, fitting, temperature)
    largest = tl.max(best)
    total = tl.sum(tl.where(best > float("-inf"), mass * tl.exp(best - largest), 0.0))
    status = status_of(tl.max(max_logit), tl.max(nan) != 0)
    return largest, tl.log(total.to(tl.float64)), status, temperature


@triton.jit
def log_probability(logits, token, temperature, largest, log_sum):
    """ln softmax of one token over the temperature; float64."""
    score = tl.math.div_rn(tl.load(logits + token).to(tl.float32), temperature)
    return score.to(tl.float64) - largest - log_sum


@triton.jit
def log_one_less_exp(x):
    """ln(1 - e^x) of x < 0: 1 - e^x cancels near 0, where the quotient restores it (Higham 2002, section 1.14.1)."""
    y = tl.exp(x)
    near = (y > 0.5) & (y < 1.0)
    corrected = (1.0 - y) * (x / tl.log(tl.where(near, y, 0.5)))
    return tl.log(tl.where(near, corrected, tl.where(y == 1.0, -x, 1.0 - y)))


@triton.jit
def race_of_position(
    weights,
    target,
    largest,
    draft,
    draft_largest,
    log_sums,
    draft_id,
    temperature,
    draft_temperature,
    vocab_size,
    noise,
):
    """The token with the largest ln weight - ln E, the lowest id of several; -1 where all weights are 0.

    log_sums: that of the target's scores less that of the drafts'.
    """
    best_value = tl.full((_TILE,), float("-inf"), tl.float32)
    best_id = tl.full((_TILE,), LARGE_ID, tl.int32)
    for start in range(0, vocab_size, _TILE):
        token = start + tl.arange(0, _TILE)
        inside = token < vocab_size
        x = tl.load(target + token, mask=inside, other=float("-inf")).to(tl.float32)
        # Scores count from the largest, as float32 may not hold the noise beside it.
        score = tl.math.div_rn(x, temperature) - largest
        if weights == OTHERS:
            score = tl.where(token == draft_id, float("-inf"), score)
        if weights == RESIDUAL:
            y = tl.load(draft + token, mask=inside, other=0.0).to(tl.float32)
            # ln(p - q) = ln p + ln(1 - q / p)
            ratio = (tl.math.div_rn(y, draft_temperature) - draft_largest) - score + log_sums
            less = ratio < 0.0
            score = tl.where(less, score + log_one_less_exp(tl.where(less, ratio, -1.0)), float("-inf"))
        value = race_value(score, exponentials_of_run(noise, start, inside, _TILE))
        better = value > best_value
        best_value = tl.where(better, value, best_value)
        best_id = tl.where(better, token, best_id)
    lowest = tl.min(tl.where(best_value == tl.max(best_value), best_id, LARGE_ID))
    return tl.where(lowest < LARGE_ID, lowest, -1)
