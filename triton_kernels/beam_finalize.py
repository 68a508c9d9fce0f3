"""beam_finalize: the best hypotheses of a beam search, each walked from its last token back through the parents."""

from typing import Any, NamedTuple

import triton
import triton.language as tl
from pygen.triton_kernels._specialization import Specialization, launch, signature_of
from torch import Tensor

from pygen.ops._beam_state import BeamState

_LANES = 32  # hypotheses of a program
_NUM_WARPS = 4


class Hypotheses(NamedTuple):
    """The tensors of a BeamState that hold the finished hypotheses; pointers."""

    token_ids: Any
    step_tokens: Any
    step_parents: Any
    finished_steps: Any
    finished_tokens: Any
    finished_parents: Any


@triton.jit(
    do_not_specialize=[
        "rows_out", "num_return_sequences", "num_beams", "rows", "prompt_length", "width", "pad_token_id",
        "token_ids_stride",
    ]
)  # fmt: skip
def beam_finalize_kernel(
    sequences, beam_indices, state: Hypotheses,
    rows_out: tl.int64, num_return_sequences: tl.int64, num_beams: tl.int64, rows: tl.int64,
    prompt_length: tl.int64, width: tl.int64, pad_token_id: tl.int64, token_ids_stride: tl.int64,
    LANES: tl.constexpr,
):  # fmt: skip
    """Grid (parts, runs of LANES hypotheses): the last part of a run walks, the others copy columns of the prompts."""
    row = tl.program_id(1).to(tl.int64) * LANES + tl.arange(0, LANES)
    inside = row < rows_out
    prompt = row // num_return_sequences
    sequence = sequences + row * (prompt_length + width)
    column = tl.program_id(0).to(tl.int64) * LANES
    if column < prompt_length:
        columns = column + tl.arange(0, LANES)
        mask = inside[:, None] & (columns < prompt_length)[None, :]
        first_row = state.token_ids + prompt * num_beams * token_ids_stride
        copied = tl.load(first_row[:, None] + columns[None, :], mask=mask)
        tl.store(sequence[:, None] + columns[None, :], copied, mask=mask)
    else:
        hypothesis = prompt * num_beams + row % num_return_sequences
        last = tl.load(state.finished_steps + hypothesis, mask=inside, other=-1)
        token = tl.load(state.finished_tokens + hypothesis, mask=inside, other=0)
        beam = tl.load(state.finished_parents + hypothesis, mask=inside, other=0)
        step = width.to(tl.int64) - 1
        while step >= 0:
            walks = step <= last
            tl.store(sequence + prompt_length + step, tl.where(walks, token, pad_token_id), mask=inside)
            tl.store(beam_indices + row * width + step, tl.where(walks, beam, beam * 0 - 1), mask=inside)
            # The op checks the beam indices, where a broken walk shows.
            before = tl.maximum(step - 1, 0) * rows + tl.where((beam >= 0) & (beam < rows), beam, 0)
            goes_on = inside & walks
            token = tl.where(goes_on, tl.load(state.step_tokens + before, mask=goes_on, other=0), token)
            beam = tl.where(goes_on, tl.load(state.step_parents + before, mask=goes_on, other=0), beam)
            step -= 1


def beam_finalize(
    state: BeamState, num_return_sequences: int, width: int, sequences: Tensor, beam_indices: Tensor
) -> None:
    """See `pygen.ops.beam_finalize`; width: tokens of the longest hypothesis. Writes the last two."""
    rows_out = sequences.shape[0]
    if rows_out == 0:
        return
    launch(
        beam_finalize_kernel, (triton.cdiv(state.prompt_length, _LANES) + 1, triton.cdiv(rows_out, _LANES)),
        sequences, beam_indices,
        Hypotheses(
            state.token_ids, state.step_tokens, state.step_parents, state.finished_steps, state.finished_tokens,
            state.finished_parents,
        ),
        rows_out, num_return_sequences, state.num_beams, state.rows,
        state.prompt_length, width, state.pad_token_id, state.token_ids.stride(0),
        num_warps=_NUM_WARPS, LANES=_LANES,
    )  # fmt: skip


def specializations() -> list[Specialization]:
    types = {
        "sequences": "i64",
        "beam_indices": "i32",
        "state": Hypotheses("i64", "i64", "i32", "i64", "i64", "i32"),
    }
    signature = signature_of(beam_finalize_kernel, types)
    return [Specialization("", beam_finalize_kernel, signature, {"LANES": _LANES}, _NUM_WARPS)]
