"""verify_draft: one launch, a program per row. A position costs one read of the target's logits and one of the drafts'.
The race for the token behind the accepted drafts reads those of its position once more."""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from pygen.triton_kernels import _arguments as arguments
from pygen.triton_kernels._draft_positions import (
    OTHERS,
    RESIDUAL,
    TARGET,
    largest_logit,
    log_probability,
    log_sum_exp,
    race_of_position,
)
from pygen.triton_kernels._philox import ACCEPTANCE, Noise, noise_words, uniform_of
from pygen.triton_kernels._specialization import Specialization, launch, signature_of
from pygen.triton_kernels._survivors import status_of

from pygen.ops._draft_call import DraftCall
from pygen.ops._outputs import DraftOutput

_NUM_WARPS = 8


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
            weights = tl.where(drafted, tl.where(certain != 0, OTHERS, RESIDUAL), TARGET)
            if (fault == 0) & (weights == RESIDUAL):
                draft_largest, draft_log_sum, fault, draft_fitting = log_sum_exp(y, vocab_size, temperature)
            if fault != 0:
                _, token, _ = largest_logit(x, vocab_size)
            else:
                if drafted:
                    p = log_probability(x, draft_id, fitting, largest, log_sum)
                    q = p * 0.0
                    if p > float("-inf"):
                        if weights == RESIDUAL:
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
                        token = tl.where((token < 0) & (weights == TARGET), 0, token)
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
