"""verify_draft: two launches. Programs read every position up to the one behind the drafts, each a part of its logits.
Those of a row then all find which drafts pass, and race for the token behind them, each among a part of the tokens."""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from pygen.triton_kernels import _arguments as arguments
from pygen.triton_kernels._draft_positions import (
    FACTS_TYPES,
    LARGEST_LOGIT,
    OTHERS,
    RESIDUAL,
    TARGET,
    Facts,
    Race,
    facts_of,
    largest_logit,
    largest_logit_of_part,
    log_probability,
    log_sum_exp,
    log_sum_exp_of_part,
    race_of_part,
)
from pygen.triton_kernels._philox import ACCEPTANCE, Noise, noise_words, uniform_of
from pygen.triton_kernels._scan import LARGE_ID, SCAN_TILE
from pygen.triton_kernels._specialization import Specialization, launch, signature_of
from pygen.triton_kernels._survivors import status_of
from pygen.triton_kernels._workspace import MAX_PARTS
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from pygen.ops._draft_call import DraftCall
from pygen.ops._outputs import DraftOutput

_NUM_WARPS = 8
_FACTS_NUMBERS = [
    "target_row_stride", "target_position_stride", "draft_row_stride", "draft_position_stride", "draft_ids_stride",
    "certain", "num_drafts", "vocab_size", "tokens",
]  # fmt: skip


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


class Parts(NamedTuple):
    """What the programs of a row's race tell the last of them; pointers."""

    best: Any  # (rows, MAX_PARTS) float32
    ids: Any  # (rows, MAX_PARTS) int32
    tickets: Any  # (rows,) int32


@triton.jit
def draft_at(rows, row, draft_ids_stride, position, length, vocab_size):
    """(id, whether there is one) of a draft; -1 behind the last and where the id is not in the vocabulary."""
    given_id = tl.load(rows.draft_ids + row * draft_ids_stride + position, mask=position < length, other=-1)
    drafted = (given_id >= 0) & (given_id < vocab_size)
    return tl.where(drafted, given_id, -1).to(tl.int32), drafted


@triton.jit
def write_facts(logits, begin, end, temperature, facts, part):
    if temperature == 0.0:
        largest, lowest, nan = largest_logit_of_part(logits, begin, end)
        tl.store(facts.ids + part, lowest)
    else:
        largest, mass, nan = log_sum_exp_of_part(logits, begin, end, temperature)
        tl.store(facts.masses + part, mass)
    tl.store(facts.largest + part, largest)
    tl.store(facts.nan + part, nan)


@triton.jit(do_not_specialize=_FACTS_NUMBERS)
def draft_facts_kernel(
    target, draft, rows: Rows, facts: Facts, tickets,
    target_row_stride: tl.int64, target_position_stride: tl.int64, draft_row_stride: tl.int64,
    draft_position_stride: tl.int64, draft_ids_stride: tl.int64, certain: tl.int32, num_drafts: tl.int32,
    vocab_size: tl.int32, tokens: tl.int32, PDL: tl.constexpr,
):  # fmt: skip
    """Grid (rows, parts, 2 * positions), or positions where `certain`: then `draft` is not read.

    facts: of (rows, positions, 2), target and drafts.
    """
    if PDL:
        gdc_launch_dependents()
    row = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    sources = tl.where(certain != 0, 1, 2)
    position = tl.program_id(2) // sources
    of_draft = tl.program_id(2) % sources != 0
    if (part == 0) & (tl.program_id(2) == 0):
        tl.store(tickets + row, part)
    length = tl.minimum(tl.load(rows.lengths + row), num_drafts)
    temperature = tl.load(rows.temperatures + row)
    _, drafted = draft_at(rows, row, draft_ids_stride, position, length, vocab_size)
    begin = tl.multiple_of(part * tokens, SCAN_TILE)
    end = tl.minimum(begin + tokens, vocab_size)
    here = facts_of(facts, (row * (num_drafts + 1) + position) * 2 + of_draft.to(tl.int32))
    if of_draft:
        if drafted & (temperature != 0.0):
            y = draft + row * draft_row_stride + position * draft_position_stride
            write_facts(y, begin, end, temperature, here, part)
    elif position <= length:
        x = target + row * target_row_stride + position * target_position_stride
        write_facts(x, begin, end, temperature, here, part)


@triton.jit(
    do_not_specialize=[*_FACTS_NUMBERS, "noise_stride", "noise_is_given", "parts"],
)
def verify_draft_kernel(
    target, draft, rows: Rows, facts: Facts, race_parts: Parts, out: Outputs,
    target_row_stride: tl.int64, target_position_stride: tl.int64, draft_row_stride: tl.int64,
    draft_position_stride: tl.int64, draft_ids_stride: tl.int64, certain: tl.int32, num_drafts: tl.int32,
    vocab_size: tl.int32, tokens: tl.int32, noise_stride: tl.int64, noise_is_given: tl.int32, parts: tl.int32,
    PDL: tl.constexpr,
):  # fmt: skip
    """Grid (rows, parts of the race). parts: those of the facts."""
    row = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    length = tl.minimum(tl.load(rows.lengths + row), num_drafts)
    temperature = tl.load(rows.temperatures + row)
    seed = tl.load(rows.seeds + row)
    step = tl.load(rows.steps + row)
    if PDL:
        # What follows reads what the first launch wrote.
        gdc_wait()
    position = row * 0
    token = vocab_size * 0
    fault = vocab_size * 0
    weights = fault + TARGET
    draft_id = fault - 1
    largest = temperature * 0.0
    log_sums = largest
    draft_largest = largest
    fitting = temperature
    draft_fitting = temperature
    stays = vocab_size * 0 + 1
    while stays != 0:
        x = target + row * target_row_stride + position * target_position_stride
        y = draft + row * draft_row_stride + position * draft_position_stride
        here = facts_of(facts, (row * (num_drafts + 1) + position) * 2)
        draft_id, drafted = draft_at(rows, row, draft_ids_stride, position, length, vocab_size)
        if temperature == 0.0:
            top, token, nan = largest_logit(here, parts)
            fault = status_of(top, nan)
            stays = ((fault == 0) & (token == draft_id)).to(tl.int32)
        else:
            stays = vocab_size * 0
            largest, log_sum, fault, fitting = log_sum_exp(here, parts, x, vocab_size, temperature)
            draft_log_sum = log_sum * 0.0
            weights = tl.where(drafted, tl.where(certain != 0, OTHERS, RESIDUAL), TARGET)
            if (fault == 0) & (weights == RESIDUAL):
                of_draft = facts_of(facts, (row * (num_drafts + 1) + position) * 2 + 1)
                draft_largest, draft_log_sum, fault, draft_fitting = log_sum_exp(
                    of_draft, parts, y, vocab_size, temperature
                )
            log_sums = (log_sum - draft_log_sum).to(tl.float32)
            if fault != 0:
                weights = weights * 0 + LARGEST_LOGIT
            elif drafted:
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
        position += stays
    finishes = part == 0
    if temperature != 0.0:
        x = target + row * target_row_stride + position * target_position_stride
        y = draft + row * draft_row_stride + position * draft_position_stride
        race = Race(weights, largest, draft_largest, log_sums, draft_id, fitting, draft_fitting)
        noise = Noise(rows.noise + row * noise_stride, noise_is_given != 0, seed, step + position)
        begin = tl.multiple_of(part * tokens, SCAN_TILE)
        end = tl.minimum(begin + tokens, vocab_size)
        if weights == LARGEST_LOGIT:
            value, best_id, _nan = largest_logit_of_part(x, begin, end)
        else:
            value, best_id = race_of_part(race, x, y, begin, end, noise)
        tl.store(race_parts.best + row * MAX_PARTS + part, value)
        tl.store(race_parts.ids + row * MAX_PARTS + part, best_id)
        tl.debug_barrier()
        # The last program to finish knows the winner.
        finishes = tl.atomic_add(race_parts.tickets + row, 1, sem="acq_rel") == tl.num_programs(1) - 1
        if finishes:
            tl.debug_barrier()
            lane = tl.arange(0, MAX_PARTS)
            exists = lane < tl.num_programs(1)
            values = tl.load(race_parts.best + row * MAX_PARTS + lane, mask=exists, other=float("-inf"))
            ids = tl.load(race_parts.ids + row * MAX_PARTS + lane, mask=exists, other=LARGE_ID)
            token = tl.min(tl.where(values == tl.max(values), ids, LARGE_ID))
            if (token == LARGE_ID) & (weights != LARGEST_LOGIT):
                # Rounding may leave no residual. Then the race is among p.
                among_all = Race(weights * 0, largest, draft_largest, log_sums, draft_id, fitting, draft_fitting)
                _value, token = race_of_part(among_all, x, y, 0, vocab_size, noise)
            token = tl.where(token < LARGE_ID, token, 0)
    if finishes:
        tl.store(out.accepted_lengths + row, position)
        tl.store(out.token_ids + row, token.to(tl.int64))
        tl.store(out.status + row, fault)


def verify_draft(call: DraftCall, out: DraftOutput) -> None:
    """See `pygen.ops.verify_draft`; arguments are checked there."""
    target, source = call.target.detach(), call.noise
    count, positions, vocab_size = target.shape
    device = target.device
    draft = target if call.draft is None else call.draft.detach()
    no_noise = torch.zeros(1, device=device)
    rows = Rows(
        draft_ids=call.draft_token_ids,
        lengths=arguments.of_rows(call.lengths, count, device),
        temperatures=arguments.of_rows(call.temperature, count, device),
        seeds=source.seeds,
        steps=arguments.of_rows(call.step if source.steps is None else source.steps, count, device),
        uniforms=no_noise if call.uniforms is None else call.uniforms,
        noise=no_noise if source.given is None else source.given,
    )
    sources = 1 if call.draft is None else 2
    parts, tokens = arguments.parts_of_rows(count * positions * sources, vocab_size, device)
    parts_of_race, tokens_of_race = arguments.parts_of_rows(count, vocab_size, device)

    def table(dtype: torch.dtype, *size: int) -> torch.Tensor:
        return torch.empty((count, *size), dtype=dtype, device=device)

    size = (positions, 2, int(MAX_PARTS.value))
    facts = Facts(
        table(torch.float32, *size), table(torch.int32, *size), table(torch.float32, *size), table(torch.int32, *size)
    )
    race_parts = Parts(table(torch.float32, size[-1]), table(torch.int32, size[-1]), table(torch.int32))
    numbers = (
        target.stride(0), target.stride(1), draft.stride(0), draft.stride(1), call.draft_token_ids.stride(0),
        int(call.draft is None), positions - 1, vocab_size,
    )  # fmt: skip
    launch(
        draft_facts_kernel, (count, parts, positions * sources), target, draft, rows, facts, race_parts.tickets,
        *numbers, tokens, num_warps=_NUM_WARPS,
    )  # fmt: skip
    launch(
        verify_draft_kernel, (count, parts_of_race), target, draft, rows, facts, race_parts,
        Outputs(out.accepted_lengths, out.token_ids, out.status), *numbers, tokens_of_race,
        0 if source.given is None else source.given.stride(0), int(source.given is not None), parts,
        num_warps=_NUM_WARPS, dependent=True,
    )  # fmt: skip


def specializations() -> list[Specialization]:
    types: dict[str, Any] = {"rows": Rows("i64", "i64", "fp32", "i64", "i64", "fp32", "fp32"), "facts": FACTS_TYPES}
    of_kernel: list[tuple[str, Any, dict[str, Any], bool]] = [
        ("facts", draft_facts_kernel, {"tickets": "i32"}, False),
        (
            "rows",
            verify_draft_kernel,
            {"race_parts": Parts("fp32", "i32", "i32"), "out": Outputs("i64", "i64", "i32")},
            True,
        ),
    ]
    dtypes = ("fp32", "fp16", "bf16")
    return [
        Specialization(
            f"{name} {target}, drafts {draft}",
            kernel,
            signature_of(kernel, {**types, **others, "target": target, "draft": draft}),
            {},
            _NUM_WARPS,
            dependent=dependent,
        )
        for name, kernel, others, dependent in of_kernel
        for target in dtypes
        for draft in dtypes
    ]
