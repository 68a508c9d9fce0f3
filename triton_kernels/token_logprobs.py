"""token_logprobs: one launch. The programs of a row scan a part of its logits each; the last to leave makes the
log-sum-exp of the masses of their blocks, looks the tokens up, and ranks the best of the blocks that can hold them."""

import torch
import triton
import triton.language as tl
from pygen.triton_kernels import _arguments as arguments
from pygen.triton_kernels import _rows
from pygen.triton_kernels._beam_rows import LANES
from pygen.triton_kernels._beam_update import rank_of
from pygen.triton_kernels._rows import integers_of, reals_of
from pygen.triton_kernels._scan import BLOCK, SCAN_TILE, scan
from pygen.triton_kernels._select import TILE, cut_of, ordered_key
from pygen.triton_kernels._specialization import Specialization, launch, signature_of
from pygen.triton_kernels._survivors import mass_of_row, row_facts, status_of
from torch import Tensor

from pygen.ops._outputs import TokenLogprobs

_TOKENS = tl.constexpr(128)  # looked up together
_LEAST_KEY = tl.constexpr(-(2**31))
_NUM_WARPS = 8


@triton.jit
def list_blocks(block_max, blocks, least, block_list):
    """Lists the blocks whose maximum reaches a key; returns how many."""
    found = blocks * 0
    for start in range(0, blocks, TILE):
        block = start + tl.arange(0, TILE)
        top = tl.load(block_max + block, mask=block < blocks, other=float("-inf"))
        reaches = (top > float("-inf")) & (ordered_key(top) >= least)
        place = found + tl.cumsum(reaches.to(tl.int32), axis=0) - 1
        tl.store(block_list + place, block, mask=reaches)
        found += tl.sum(reaches.to(tl.int32))
    tl.debug_barrier()
    return found


@triton.jit
def in_blocks(logits, vocab_size, block_list, listed, start):
    """Tokens and scores of a tile of the listed blocks."""
    at = start + tl.arange(0, TILE)
    token = tl.load(block_list + at // BLOCK, mask=at < listed * BLOCK, other=0) * BLOCK + at % BLOCK
    inside = (at < listed * BLOCK) & (token < vocab_size)
    return token, tl.load(logits + token, mask=inside, other=float("-inf")).to(tl.float32)


@triton.jit
def write_ranked(list_scores, list_ids, length, num_top, log_sum, is_ok, top_ids, top_logprobs):
    """The best of a list, best first, and nothing where it ends."""
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
    """Lists the `count` best of the listed blocks, or all, in order of ids, ties to the lowest; returns how many."""
    least = listed * 0
    above = listed * 0
    for turn in range(32):
        candidate = least | ((listed * 0 + 1) << (31 - turn))
        reaching = listed * 0
        for start in range(0, listed * BLOCK, TILE):
            _token, score = in_blocks(logits, vocab_size, block_list, listed, start)
            reaches = (score > float("-inf")) & (ordered_key(score) >= (candidate ^ _LEAST_KEY))
            reaching += tl.sum(reaches.to(tl.int32))
        if reaching >= count:
            least = candidate
        else:
            above = tl.maximum(above, reaching)
    cut = least ^ _LEAST_KEY
    length = listed * 0
    equal = listed * 0
    for start in range(0, listed * BLOCK, TILE):
        token, score = in_blocks(logits, vocab_size, block_list, listed, start)
        key = ordered_key(score)
        is_equal = ((key == cut) & (score > float("-inf"))).to(tl.int32)
        order = equal + tl.cumsum(is_equal, axis=0)
        taken = ((key > cut) & (score > float("-inf"))) | ((is_equal != 0) & (order <= count - above))
        place = length + tl.cumsum(taken.to(tl.int32), axis=0) - 1
        tl.store(list_scores + place, score, mask=taken)
        tl.store(list_ids + place, token, mask=taken)
        length += tl.sum(taken.to(tl.int32))
        equal += tl.sum(is_equal)
    tl.debug_barrier()
    return length


@triton.jit(
    do_not_specialize=[
        "logits_stride", "vocab_size", "parts", "tokens", "token_ids_stride", "num_tokens", "num_top", "reals_stride",
        "integers_stride",
    ]
)  # fmt: skip
def token_logprobs_kernel(
    logits, logits_stride: tl.int64, vocab_size: tl.int32, parts: tl.int32, tokens: tl.int32,
    token_ids, token_ids_stride: tl.int64, num_tokens: tl.int32, num_top: tl.int32,
    logprobs, top_ids, top_logprobs, status,
    reals, reals_stride: tl.int64, integers, integers_stride: tl.int64, tickets,
    list_scores, list_ids,
):  # fmt: skip
    """Grid (rows, parts): program (row, part) scans `tokens` tokens, a multiple of SCAN_TILE."""
    row = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    logits += row * logits_stride
    block_max, block_sum, part_value, _, _ = reals_of(reals, row, reals_stride, vocab_size)
    seen, _, part_id, part_nan, _, block_list, _ = integers_of(integers, row, integers_stride, vocab_size)
    begin = tl.multiple_of(part * tokens, SCAN_TILE)
    scan(
        begin, tl.minimum(begin + tokens, vocab_size), vocab_size, part, 1.0, block_max, block_sum, True,
        part_value, part_id, part_nan, False, reals, False, 0, 0, reals, False,
        logits, reals, seen, seen, seen, seen, vocab_size & 0, False, False, 1.0, 0.0, 0.0,
    )  # fmt: skip
    tl.debug_barrier()

    if tl.atomic_add(tickets + row, 1, sem="acq_rel") == parts - 1:
        tl.debug_barrier()
        blocks = (vocab_size + BLOCK - 1) // BLOCK
        largest, nan = row_facts(block_max, blocks, part_nan, parts)
        row_status = status_of(largest, nan)
        tl.store(status + row, row_status)
        is_ok = row_status == 0
        log_sum = largest.to(tl.float64) + tl.log(mass_of_row(block_max, block_sum, blocks, 1.0, largest))
        for start in range(0, num_tokens, _TOKENS):
            at = start + tl.arange(0, _TOKENS)
            token = tl.load(token_ids + row * token_ids_stride + at, mask=at < num_tokens, other=-1)
            known = (token >= 0) & (token < vocab_size)
            logit = tl.load(logits + token, mask=known, other=0.0).to(tl.float32)
            value = (logit.to(tl.float64) - log_sum).to(tl.float32)
            tl.store(
                logprobs + row * num_tokens + at, tl.where(known & is_ok, value, float("nan")), mask=at < num_tokens
            )
        if num_top > 0:
            top_ids += row * num_top
            top_logprobs += row * num_top
            list_scores += row * num_top
            list_ids += row * num_top
            length = parts * 0
            if is_ok:
                cut, _above = cut_of(block_max, blocks, num_top.to(tl.float64), False, False, largest, 0.0)
                listed = list_blocks(block_max, blocks, cut, block_list)
                length = list_best(logits, vocab_size, block_list, listed, num_top, list_scores, list_ids)
            write_ranked(list_scores, list_ids, length, num_top, log_sum, is_ok, top_ids, top_logprobs)


def token_logprobs(logits: Tensor, token_ids: Tensor, out: TokenLogprobs) -> None:
    """See `pygen.ops.token_logprobs`; arguments are checked there."""
    (rows, vocab_size), device, top = logits.shape, logits.device, out.top_logprobs
    parts, tokens = arguments.parts_of_rows(rows, vocab_size, device)
    real_room, integer_room = _rows.real_room(vocab_size), _rows.integer_room(vocab_size, False)
    reals = torch.empty(rows * real_room, dtype=torch.float32, device=device)
    integers = torch.empty(rows * integer_room, dtype=torch.int32, device=device)
    num_tokens = 1 if token_ids.dim() == 1 else token_ids.shape[1]
    num_top = 0 if top is None else top.token_ids.shape[1]
    best = (token_ids, reals) if top is None else top
    launch(
        token_logprobs_kernel, (rows, parts),
        logits.detach(), logits.stride(0), vocab_size, parts, tokens, token_ids, token_ids.stride(0), num_tokens,
        num_top, out.logprobs, *best, out.status,
        reals, real_room, integers, integer_room, torch.zeros(rows, dtype=torch.int32, device=device),
        torch.empty(rows * num_top, device=device), torch.empty(rows * num_top, dtype=torch.int32, device=device),
        num_warps=_NUM_WARPS,
    )  # fmt: skip


def specializations() -> list[Specialization]:
    pointers = {
        "token_ids": "i64", "logprobs": "fp32", "top_ids": "i64", "top_logprobs": "fp32", "status": "i32",
        "reals": "fp32", "integers": "i32", "tickets": "i32", "list_scores": "fp32", "list_ids": "i32",
    }  # fmt: skip
    return [
        Specialization(
            dtype,
            token_logprobs_kernel,
            signature_of(token_logprobs_kernel, {**pointers, "logits": dtype}),
            {},
            _NUM_WARPS,
        )
        for dtype in ("fp32", "fp16", "bf16")
    ]
