"""token_logprobs: one launch. The programs of a row scan a part of its logits each. The last one to finish makes the
log-sum-exp of the masses of their blocks, looks the tokens up, and ranks the best of the blocks that can hold them."""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from pygen.triton_kernels import _arguments as arguments
from pygen.triton_kernels._philox import Noise
from pygen.triton_kernels._scan import SCAN_TILE, scan
from pygen.triton_kernels._scores import plain_scores
from pygen.triton_kernels._select import LANES, LEAST_KEY, TILE, ordered_key, rank_of
from pygen.triton_kernels._specialization import Specialization, launch, signature_of
from pygen.triton_kernels._survivors import list_best_blocks, mass_of_row, row_facts, status_of
from pygen.triton_kernels._workspace import BLOCK, WORKSPACE_TYPES, Workspace, row_workspace
from torch import Tensor

from pygen.ops._outputs import TokenLogprobs

_TOKENS = tl.constexpr(128)  # looked up together
_NUM_WARPS = 8


class Outputs(NamedTuple):
    """Where the launch writes; pointers."""

    logprobs: Any  # (rows, num_tokens) float32
    top_ids: Any  # (rows, num_top) int64
    top_logprobs: Any  # (rows, num_top) float32
    status: Any  # (rows,) int32


class Scratch(NamedTuple):
    """Beside the workspace; pointers."""

    tickets: Any  # (rows,) int32, zero before the launch
    list_scores: Any  # (rows, num_top) float32
    list_ids: Any  # (rows, num_top) int32


@triton.jit
def in_blocks(logits, vocab_size, block_list, listed, start):
    """The tokens and scores of a tile of the listed blocks."""
    at = start + tl.arange(0, TILE)
    token = tl.load(block_list + at // BLOCK, mask=at < listed * BLOCK, other=0) * BLOCK + at % BLOCK
    inside = (at < listed * BLOCK) & (token < vocab_size)
    return token, tl.load(logits + token, mask=inside, other=float("-inf")).to(tl.float32)


@triton.jit
def write_ranked(list_scores, list_ids, length, num_top, log_sum, is_ok, top_ids, top_logprobs):
    """Writes the best of a list, best first, and the filling behind its end."""
    for start in range(0, length, LANES):
        at = start + tl.arange(0, LANES)
        score = tl.load(list_scores + at, mask=at < length, other=0.0)
        rank = rank_of(list_scores, length, at, score)
        wins = (at < length) & (rank < num_top)
        tl.store(top_ids + rank, tl.load(list_ids + at, mask=wins, other=0).to(tl.int64), mask=wins)
        tl.store(top_logprobs + rank, (score.to(tl.float64) - log_sum).to(tl.float32), mask=wins)
    for start in range(tl.minimum(length, num_top), num_top, LANES):
        at = start + tl.arange(0, LANES)
        nothing = tl.where(is_ok, float("-inf"), float("nan")) + tl.zeros((LANES,), tl.float32)
        tl.store(top_ids + at, tl.full((LANES,), -1, tl.int64), mask=at < num_top)
        tl.store(top_logprobs + at, nothing, mask=at < num_top)


@triton.jit
def list_best(logits, vocab_size, block_list, listed, count, list_scores, list_ids):
    """Lists the `count` best of the listed blocks by id, ties to the lowest; returns how many there are."""
    least = listed * 0
    above = listed * 0
    for turn in range(32):
        candidate = least | ((listed * 0 + 1) << (31 - turn))
        reaching = listed * 0
        for start in range(0, listed * BLOCK, TILE):
            _token, score = in_blocks(logits, vocab_size, block_list, listed, start)
            reaches = (score > float("-inf")) & (ordered_key(score) >= (candidate ^ LEAST_KEY))
            reaching += tl.sum(reaches.to(tl.int32))
        if reaching >= count:
            least = candidate
        else:
            above = tl.maximum(above, reaching)
    cut = least ^ LEAST_KEY
    length = listed * 0
    equal = listed * 0
    for start in range(0, listed * BLOCK, TILE):
        token, score = in_blocks(logits, vocab_size, block_list, listed, start)
        key = ordered_key(score)
        is_equal = ((key == cut) & (score > float("-inf"))).to(tl.int32)
        order = equal + tl.cumsum(is_equal, axis=0)
        taken = ((key > cut) & (score > float("-inf"))) | ((is_equal != 0) & (order <= count - above))
        index = length + tl.cumsum(taken.to(tl.int32), axis=0) - 1
        tl.store(list_scores + index, score, mask=taken)
        tl.store(list_ids + index, token, mask=taken)
        length += tl.sum(taken.to(tl.int32))
        equal += tl.sum(is_equal)
    tl.debug_barrier()
    return length


@triton.jit(
    do_not_specialize=[
        "logits_stride", "vocab_size", "tokens", "token_ids_stride", "num_tokens", "num_top", "f32_stride",
        "i32_stride",
    ]
)  # fmt: skip
def token_logprobs_kernel(
    logits, token_ids, out: Outputs, workspace: Workspace, scratch: Scratch,
    logits_stride: tl.int64, vocab_size: tl.int32, tokens: tl.int32, token_ids_stride: tl.int64, num_tokens: tl.int32,
    num_top: tl.int32, f32_stride: tl.int64, i32_stride: tl.int64,
):  # fmt: skip
    """Grid (rows, parts): program (row, part) scans `tokens` tokens, a multiple of SCAN_TILE."""
    row = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    parts = tl.num_programs(1)
    logits += row * logits_stride
    work = row_workspace(workspace.f32, f32_stride, workspace.i32, i32_stride, row, vocab_size)
    begin = tl.multiple_of(part * tokens, SCAN_TILE)
    scan(
        plain_scores(logits, work, workspace.scores, False), work, Noise(workspace.f32, False, 0, 0),
        begin, tl.minimum(begin + tokens, vocab_size), vocab_size, part, 1.0, True, False, False,
    )  # fmt: skip
    tl.debug_barrier()

    if tl.atomic_add(scratch.tickets + row, 1, sem="acq_rel") == parts - 1:
        tl.debug_barrier()
        blocks = (vocab_size + BLOCK - 1) // BLOCK
        largest, nan = row_facts(work.block_max, blocks, work.part_nan, parts)
        row_status = status_of(largest, nan)
        tl.store(out.status + row, row_status)
        is_ok = row_status == 0
        log_sum = largest.to(tl.float64) + tl.log(mass_of_row(work, blocks, 1.0, largest))
        for start in range(0, num_tokens, _TOKENS):
            at = start + tl.arange(0, _TOKENS)
            token = tl.load(token_ids + row * token_ids_stride + at, mask=at < num_tokens, other=-1)
            known = (token >= 0) & (token < vocab_size)
            logit = tl.load(logits + token, mask=known, other=0.0).to(tl.float32)
            value = (logit.to(tl.float64) - log_sum).to(tl.float32)
            value = tl.where(known & is_ok, value, float("nan"))
            tl.store(out.logprobs + row * num_tokens + at, value, mask=at < num_tokens)
        if num_top > 0:
            list_scores = scratch.list_scores + row * num_top
            list_ids = scratch.list_ids + row * num_top
            length = parts * 0
            if is_ok:
                _score, listed = list_best_blocks(work, blocks, num_top, largest * 0.0 + float("inf"))
                length = list_best(logits, vocab_size, work.block_list, listed, num_top, list_scores, list_ids)
            write_ranked(
                list_scores, list_ids, length, num_top, log_sum, is_ok,
                out.top_ids + row * num_top, out.top_logprobs + row * num_top,
            )  # fmt: skip


def token_logprobs(logits: Tensor, token_ids: Tensor, out: TokenLogprobs) -> None:
    """See `pygen.ops.token_logprobs`; arguments are checked there."""
    (rows, vocab_size), device, top = logits.shape, logits.device, out.top_logprobs
    parts, tokens = arguments.parts_of_rows(rows, vocab_size, device)
    workspace, strides = arguments.row_workspaces(rows, vocab_size, device, None, counted=False)
    num_tokens = 1 if token_ids.dim() == 1 else token_ids.shape[1]
    num_top = 0 if top is None else top.token_ids.shape[1]
    best: tuple[Tensor, Tensor] = (token_ids, workspace.f32) if top is None else top
    scratch = Scratch(
        tickets=torch.zeros(rows, dtype=torch.int32, device=device),
        list_scores=torch.empty(rows * num_top, dtype=torch.float32, device=device),
        list_ids=torch.empty(rows * num_top, dtype=torch.int32, device=device),
    )
    launch(
        token_logprobs_kernel, (rows, parts),
        logits.detach(), token_ids, Outputs(out.logprobs, *best, out.status), workspace, scratch,
        logits.stride(0), vocab_size, tokens, token_ids.stride(0), num_tokens, num_top, *strides, num_warps=_NUM_WARPS,
    )  # fmt: skip


def specializations() -> list[Specialization]:
    types = {
        "token_ids": "i64",
        "out": Outputs("fp32", "i64", "fp32", "i32"),
        "workspace": WORKSPACE_TYPES,
        "scratch": Scratch("i32", "fp32", "i32"),
    }
    return [
        Specialization(
            dtype,
            token_logprobs_kernel,
            signature_of(token_logprobs_kernel, {**types, "logits": dtype}),
            {},
            _NUM_WARPS,
        )
        for dtype in ("fp32", "fp16", "bf16")
    ]
