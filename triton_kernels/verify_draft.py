"""verify_draft: one launch, a program per row. A position costs one read of the target's logits and one of the drafts'.
The race for the token behind the accepted drafts reads those of its position once more."""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from pygen.triton_kernels import _arguments as arguments
from pygen.triton_kernels._philox import ACCEPTANCE, Noise, exponentials_of_run, noise_words, uniform_of
from pygen.triton_kernels._scan import LARGE_ID, race_value
from pygen.triton_kernels._specialization import Specialization, launch, signature_of
from pygen.triton_kernels._survivors import fitting_temperature, status_of

from pygen.ops._draft_call import DraftCall
from pygen.ops._outputs import DraftOutput

_TILE = tl.constexpr(2048)
_NUM_WARPS = 8

# The weight of a token in the race.
_TARGET = tl.constexpr(0)  # p
_OTHERS = tl.constexpr(1)  # p, but none for the draft
_RESIDUAL = tl.constexpr(2)  # max(p - q, 0)


class Rows(NamedTuple):
    """What differs by row; pointers."""

    draft_ids: Any  # (rows, num_drafts) int64
    lengths: Any  # (rows,) int64
    temperatures: Any  # (rows,) float32
    seeds: Any  # (rows,) int64
    steps: Any  # (rows,) int64
    uniforms: Any  # (rows, num_drafts) float32
    noise: Any  # (rows, vocab_size) float32


class Outputs(NamedTuple):
    """The tensors of a DraftOutput; pointers."""

    accepted_lengths: Any
    token_ids: Any
    status: Any


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
        if weights == _OTHERS:
            score = tl.where(token == draft_id, float("-inf"), score)
        if weights == _RESIDUAL:
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


@triton.jit(
    do_not_specialize=[
        "target_row_stride", "target_position_stride", "draft_row_stride", "draft_position_stride", "draft_ids_stride",
        "noise_stride", "certain", "noise_is_given", "num_drafts", "vocab_size",
    ]
)  # fmt: skip
def verify_draft_kernel(
    target, draft, rows: Rows, out: Outputs,
    target_row_stride: tl.int64, target_position_stride: tl.int64, draft_row_stride: tl.int64,
    draft_position_stride: tl.int64, draft_ids_stride: tl.int64, noise_stride: tl.int64, certain: tl.int32,
    noise_is_given: tl.int32, num_drafts: tl.int32, vocab_size: tl.int32,
):  # fmt: skip
    """Grid (rows,). `certain`: `draft` is not read."""
    row = tl.program_id(0).to(tl.int64)
    length = tl.minimum(tl.load(rows.lengths + row), num_drafts)
    temperature = tl.load(rows.temperatures + row)
    seed = tl.load(rows.seeds + row)
    step = tl.load(rows.steps + row)
    position = row * 0
    token = vocab_size * 0
    fault = vocab_size * 0
    stays = vocab_size * 0 + 1
    while stays != 0:
        x = target + row * target_row_stride + position * target_position_stride
        y = draft + row * draft_row_stride + position * draft_position_stride
        given_id = tl.load(rows.draft_ids + row * draft_ids_stride + position, mask=position < length, other=-1)
        drafted = (given_id >= 0) & (given_id < vocab_size)
        draft_id = tl.where(drafted, given_id, -1).to(tl.int32)
        if temperature == 0.0:
            top, token, nan = largest_logit(x, vocab_size)
            fault = status_of(top, nan)
            stays = ((fault == 0) & (token == draft_id)).to(tl.int32)
        else:
            stays = vocab_size * 0
            largest, log_sum, fault, fitting = log_sum_exp(x, vocab_size, temperature)
            draft_largest = largest * 0.0
            draft_log_sum = log_sum * 0.0
            draft_fitting = fitting
            weights = tl.where(drafted, tl.where(certain != 0, _OTHERS, _RESIDUAL), _TARGET)
            if (fault == 0) & (weights == _RESIDUAL):
                draft_largest, draft_log_sum, fault, draft_fitting = log_sum_exp(y, vocab_size, temperature)
            if fault != 0:
                _, token, _ = largest_logit(x, vocab_size)
            else:
                if drafted:
                    p = log_probability(x, draft_id, fitting, largest, log_sum)
                    q = p * 0.0
                    if p > float("-inf"):
                        if weights == _RESIDUAL:
                            q = log_probability(y, draft_id, draft_fitting, draft_largest, draft_log_sum)
                        if noise_is_given:
                            uniform = tl.load(rows.uniforms + row * num_drafts + position)
                        else:
                            uniform = uniform_of(noise_words(seed, step + position, draft_id, ACCEPTANCE))
                        stays = (uniform < tl.exp(p - q)).to(tl.int32)
                if stays == 0:
                    log_sums = (log_sum - draft_log_sum).to(tl.float32)
                    token = weights * 0 - 1
                    noise = Noise(rows.noise + row * noise_stride, noise_is_given != 0, seed, step + position)
                    # Rounding may leave no residual. Then the race is among p.
                    while token < 0:
                        token = race_of_position(
                            weights, x, largest, y, draft_largest, log_sums, draft_id, fitting, draft_fitting,
                            vocab_size, noise,
                        )  # fmt: skip
                        token = tl.where((token < 0) & (weights == _TARGET), 0, token)
                        weights = weights * 0
        position += stays
    tl.store(out.accepted_lengths + row, position)
    tl.store(out.token_ids + row, token.to(tl.int64))
    tl.store(out.status + row, fault)


def verify_draft(call: DraftCall, out: DraftOutput) -> None:
    """See `pygen.ops.verify_draft`; arguments are checked there."""
    target, source = call.target.detach(), call.noise
    count, positions, vocab_size = target.shape
    draft = target if call.draft is None else call.draft.detach()
    no_noise = torch.zeros(1, device=target.device)
    rows = Rows(
        draft_ids=call.draft_token_ids,
        lengths=arguments.of_rows(call.lengths, count, target.device),
        temperatures=arguments.of_rows(call.temperature, count, target.device),
        seeds=source.seeds,
        steps=arguments.of_rows(call.step if source.steps is None else source.steps, count, target.device),
        uniforms=no_noise if call.uniforms is None else call.uniforms,
        noise=no_noise if source.given is None else source.given,
    )
    launch(
        verify_draft_kernel, (count,), target, draft, rows, Outputs(out.accepted_lengths, out.token_ids, out.status),
        target.stride(0), target.stride(1), draft.stride(0), draft.stride(1), call.draft_token_ids.stride(0),
        0 if source.given is None else source.given.stride(0), int(call.draft is None), int(source.given is not None),
        positions - 1, vocab_size, num_warps=_NUM_WARPS,
    )  # fmt: skip


def specializations() -> list[Specialization]:
    types = {"rows": Rows("i64", "i64", "fp32", "i64", "i64", "fp32", "fp32"), "out": Outputs("i64", "i64", "i32")}
    dtypes = ("fp32", "fp16", "bf16")
    return [
        Specialization(
            f"{target}, drafts {draft}",
            verify_draft_kernel,
            signature_of(verify_draft_kernel, {**types, "target": target, "draft": draft}),
            {},
            _NUM_WARPS,
        )
        for target in dtypes
        for draft in dtypes
    ]
