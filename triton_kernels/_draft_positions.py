"""What `verify_draft` computes of a position: facts of its logits, and the race for its token; both in parts."""

from typing import Any, NamedTuple

import triton
import triton.language as tl
from pygen.triton_kernels._philox import exponentials_of_run
from pygen.triton_kernels._scan import LARGE_ID, SCAN_TILE, race_value
from pygen.triton_kernels._survivors import fitting_temperature, status_of
from pygen.triton_kernels._workspace import MAX_PARTS

# The weight of a token in the race.
TARGET = tl.constexpr(0)  # p
OTHERS = tl.constexpr(1)  # p, but none for the draft
RESIDUAL = tl.constexpr(2)  # max(p - q, 0)
LARGEST_LOGIT = tl.constexpr(3)  # no race: the largest logit wins


class Facts(NamedTuple):
    """Facts of the parts of a position's logits; pointers, of (MAX_PARTS,) each."""

    largest: Any  # float32, of the logits that are no NaN
    ids: Any  # int32, the lowest that has it; where `log_sum_exp_of_part` did not run
    masses: Any  # float32, the sum of e^(score - the largest of the part); where it ran
    nan: Any  # int32


FACTS_TYPES = Facts("fp32", "i32", "fp32", "i32")


@triton.jit
def facts_of(facts, index):
    """Those at an index of the table of all."""
    start = index * MAX_PARTS
    return Facts(facts.largest + start, facts.ids + start, facts.masses + start, facts.nan + start)


@triton.jit
def largest_logit_of_part(logits, begin, end):
    """(largest, its lowest id, whether there is a NaN) of the logits [begin, end) that are no NaN.

    LARGE_ID stands for the id where all are NaN.
    """
    best = tl.full((SCAN_TILE,), float("-inf"), tl.float32)
    best_id = tl.full((SCAN_TILE,), LARGE_ID, tl.int32)
    nan = tl.full((SCAN_TILE,), 0, tl.int32)
    for start in range(begin, end, SCAN_TILE):
        token = start + tl.arange(0, SCAN_TILE)
        inside = token < end
        x = tl.load(logits + token, mask=inside, other=0.0).to(tl.float32)
        nan = nan | (inside & (x != x)).to(tl.int32)
        # Nothing but -inf has a lowest id too.
        better = inside & ((x > best) | ((x == best) & (token < best_id)))
        best = tl.where(better, x, best)
        best_id = tl.where(better, token, best_id)
    largest = tl.max(best)
    return largest, tl.min(tl.where(best == largest, best_id, LARGE_ID)), tl.max(nan)


@triton.jit
def log_sum_exp_of_part(logits, begin, end, temperature):
    """(largest logit, sum of e^(score - largest score), whether there is a NaN) of the logits [begin, end).

    Scores are over the temperature.
    """
    max_logit = tl.full((SCAN_TILE,), float("-inf"), tl.float32)
    best = tl.full((SCAN_TILE,), float("-inf"), tl.float32)
    mass = tl.full((SCAN_TILE,), 0.0, tl.float32)
    nan = tl.full((SCAN_TILE,), 0, tl.int32)
    for start in range(begin, end, SCAN_TILE):
        token = start + tl.arange(0, SCAN_TILE)
        x = tl.load(logits + token, mask=token < end, other=float("-inf")).to(tl.float32)
        is_nan = x != x
        nan = nan | is_nan.to(tl.int32)
        x = tl.where(is_nan, float("-inf"), x)
        max_logit = tl.maximum(max_logit, x)
        score = tl.math.div_rn(x, temperature)
        top = tl.maximum(best, score)
        shift = tl.where(top > float("-inf"), top, 0.0)
        mass = mass * tl.exp(best - shift) + tl.exp(score - shift)
        best = top
    largest = tl.max(best)
    total = tl.sum(tl.where(best > float("-inf"), mass * tl.exp(best - largest), 0.0))
    return tl.max(max_logit), total, tl.max(nan)


@triton.jit
def largest_logit(facts, parts):
    """(largest, its lowest id, whether there is a NaN) of a position's logits that are no NaN, 0 if all are."""
    part = tl.arange(0, MAX_PARTS)
    of_part = tl.load(facts.largest + part, mask=part < parts, other=float("-inf"))
    ids = tl.load(facts.ids + part, mask=part < parts, other=LARGE_ID)
    nan = tl.max(tl.load(facts.nan + part, mask=part < parts, other=0))
    largest = tl.max(of_part)
    lowest = tl.min(tl.where(of_part == largest, ids, LARGE_ID))
    return largest, tl.where(lowest < LARGE_ID, lowest, 0), nan != 0


@triton.jit
def log_sum_exp(facts, parts, logits, vocab_size, temperature):
    """(largest score, ln of the sum of e^(score - largest) in float64, status, temperature) of a position.

    Scores are over the temperature. Where that does not fit, the logits are read again, over the one that does.
    """
    part = tl.arange(0, MAX_PARTS)
    of_part = tl.load(facts.largest + part, mask=part < parts, other=float("-inf"))
    mass = tl.load(facts.masses + part, mask=part < parts, other=0.0)
    nan = tl.max(tl.load(facts.nan + part, mask=part < parts, other=0)) != 0
    max_logit = tl.max(of_part)
    status = status_of(max_logit, nan)
    fitting = fitting_temperature(temperature, max_logit)
    largest = tl.math.div_rn(max_logit, fitting)
    total = temperature * 0.0
    if (status == 0) & (fitting != temperature):
        _, total, _ = log_sum_exp_of_part(logits, 0, vocab_size, fitting)
    else:
        below = tl.math.div_rn(of_part, temperature) - tl.where(status == 0, largest, 0.0)
        total = tl.sum(tl.where(of_part > float("-inf"), mass * tl.exp(below), 0.0))
    return largest, tl.log(total.to(tl.float64)), status, fitting


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


class Race(NamedTuple):
    """What the race of a position goes by."""

    weights: Any  # TARGET, OTHERS, RESIDUAL or LARGEST_LOGIT
    largest: Any  # score of the target
    draft_largest: Any
    log_sums: Any  # that of the target's scores less that of the drafts'
    draft_id: Any
    temperature: Any
    draft_temperature: Any


@triton.jit
def race_of_part(race, target, draft, begin, end, noise):
    """The largest ln weight - ln E of the tokens [begin, end), and the lowest id that has it.

    LARGE_ID stands for the id where all weights are 0.
    """
    best_value = tl.full((SCAN_TILE,), float("-inf"), tl.float32)
    best_id = tl.full((SCAN_TILE,), LARGE_ID, tl.int32)
    for start in range(begin, end, SCAN_TILE):
        token = start + tl.arange(0, SCAN_TILE)
        inside = token < end
        x = tl.load(target + token, mask=inside, other=float("-inf")).to(tl.float32)
        # Scores count from the largest, as float32 may not hold the noise beside it.
        score = tl.math.div_rn(x, race.temperature) - race.largest
        if race.weights == OTHERS:
            score = tl.where(token == race.draft_id, float("-inf"), score)
        if race.weights == RESIDUAL:
            y = tl.load(draft + token, mask=inside, other=0.0).to(tl.float32)
            # ln(p - q) = ln p + ln(1 - q / p)
            ratio = (tl.math.div_rn(y, race.draft_temperature) - race.draft_largest) - score + race.log_sums
            less = ratio < 0.0
            score = tl.where(less, score + log_one_less_exp(tl.where(less, ratio, -1.0)), float("-inf"))
        value = race_value(score, exponentials_of_run(noise, start, inside, SCAN_TILE))
        better = value > best_value
        best_value = tl.where(better, value, best_value)
        best_id = tl.where(better, token, best_id)
    best = tl.max(best_value)
    return best, tl.min(tl.where(best_value == best, best_id, LARGE_ID))
