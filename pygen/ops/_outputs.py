"""The results of ops; for `sample` and `beam_step` also empty results, checks of `out=` and pointers."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import NamedTuple

import torch
from torch import Tensor

from pygen.ops import _checks as checks
from pygen.ops._checks import Like
from pygen.ops._kept_tokens import KeptRows, KeptTokens, check_kept_out, empty_kept, kept_arguments


class RowStatus(IntEnum):
    """The status of a row of logits, as in `SampleOutput.status`. Ops do not draw from a row that is not OK."""

    OK = 0
    NAN = 1
    ALL_MASKED = 2
    POS_INF = 3


class TopLogprobs(NamedTuple):
    """The n most probable tokens of every row, best first; of equal tokens the lower id comes first.

    A row with fewer than n survivors ends in id -1 with log-probability -inf. A row that is not OK has only id -1 and
    NaN.
    """

    token_ids: Tensor  # (rows, n) int64
    logprobs: Tensor  # (rows, n) float32


class SampleOutput(NamedTuple):
    """One token per row, with log-probabilities if the call had `logprobs=n`."""

    token_ids: Tensor  # (rows,) int64
    logprobs: Tensor | None  # (rows,) float32
    top_logprobs: TopLogprobs | None
    status: Tensor  # (rows,) int32, values of `RowStatus`
    kept: KeptTokens | KeptRows | None = None  # KeptRows in the result of a prepared op and in `out=`


class BeamStepOutput(NamedTuple):
    """The input of the next forward for every row, and the moves of the cache's rows."""

    token_ids: Tensor  # (rows,) int64, the token that each row feeds to the model next
    source_rows: Tensor  # (rows,) int64, the row from which each row copies generated positions; itself for no copy
    shared: Tensor  # (rows,) int64, the number of those positions that the two rows already have in common
    status: Tensor  # (rows,) int32, values of `RowStatus`


class BeamOutput(NamedTuple):
    """The best hypotheses of every prompt, best first; those of a prompt are adjacent."""

    sequences: Tensor  # (batch_size * num_return_sequences, prompt_length + longest) int64, prompt first
    sequences_scores: Tensor  # (batch_size * num_return_sequences,) float32, normalised by length
    beam_indices: Tensor  # (batch_size * num_return_sequences, longest) int32, the flat parent beam of each token


class TokenLogprobs(NamedTuple):
    """Log-probabilities of the given tokens, and of the n best if the call had `top=n`."""

    logprobs: Tensor  # float32, of the shape of token_ids
    top_logprobs: TopLogprobs | None  # (rows, top)
    status: Tensor  # (rows,) int32, values of `RowStatus`


class DraftOutput(NamedTuple):
    """Row r continues with its first `accepted_lengths[r]` drafts, followed by `token_ids[r]`."""

    accepted_lengths: Tensor  # (rows,) int64
    token_ids: Tensor  # (rows,) int64, in [0, vocab_size)
    status: Tensor  # (rows,) int32, values of `RowStatus`


def empty_beam_output(like: Like) -> BeamStepOutput:
    tokens, source_rows, shared = torch.zeros((3, like.rows), dtype=torch.int64, device=like.device)
    return BeamStepOutput(tokens, source_rows, shared, torch.zeros(like.rows, dtype=torch.int32, device=like.device))


def check_beam_out(out: BeamStepOutput, like: Like) -> None:
    """Checks `out=` of a step."""
    if not isinstance(out, BeamStepOutput):
        raise TypeError(f"`out` must be a BeamStepOutput, got {type(out).__name__}")
    for name, value in out._asdict().items():
        dtype = torch.int32 if name == "status" else torch.int64
        checks.check_output(f"out.{name}", value, dtype, "(rows,)", (like.rows,), like)


def empty_output(rows: int, n: int, device: torch.device, kept_width: int = 0) -> SampleOutput:
    """Allocates the result of a call with logprobs=n, and with `kept_width` entries for the kept tokens of a row."""
    token_ids = torch.empty(rows, dtype=torch.int64, device=device)
    status = torch.empty(rows, dtype=torch.int32, device=device)
    kept = empty_kept(rows, kept_width, device) if kept_width > 0 else None
    if n == 0:
        return SampleOutput(token_ids, None, None, status, kept)
    top = TopLogprobs(
        torch.empty(rows, n, dtype=torch.int64, device=device), torch.empty(rows, n, dtype=torch.float32, device=device)
    )
    return SampleOutput(token_ids, torch.empty(rows, dtype=torch.float32, device=device), top, status, kept)


def empty_logprobs(shape: tuple[int, ...], top: int, logits: Tensor) -> TokenLogprobs:
    """Allocates the result of `token_logprobs` for ids of `shape`."""
    rows, device = logits.shape[0], logits.device
    logprobs = torch.empty(shape, dtype=torch.float32, device=device)
    status = torch.empty(rows, dtype=torch.int32, device=device)
    if top == 0:
        return TokenLogprobs(logprobs, None, status)
    ids = torch.empty(rows, top, dtype=torch.int64, device=device)
    return TokenLogprobs(logprobs, TopLogprobs(ids, torch.empty(rows, top, dtype=torch.float32, device=device)), status)


def logprobs_tensors(output: TokenLogprobs) -> list[Tensor]:
    """Returns the result's tensors, in a fixed order."""
    return [output.logprobs, output.status, *(output.top_logprobs or ())]


def empty_draft_output(rows: int, device: torch.device) -> DraftOutput:
    return DraftOutput(
        torch.empty(rows, dtype=torch.int64, device=device),
        torch.empty(rows, dtype=torch.int64, device=device),
        torch.empty(rows, dtype=torch.int32, device=device),
    )


def check_out(out: SampleOutput, n: int, like: Like, kept_width: int) -> None:
    """Checks `out=` of a call with logprobs=n, and with `kept_width` entries for the kept tokens of a row."""
    if not isinstance(out, SampleOutput):
        raise TypeError(f"`out` must be a SampleOutput, got {type(out).__name__}")
    rows = like.rows
    checks.check_output("out.token_ids", out.token_ids, torch.int64, "(rows,)", (rows,), like)
    checks.check_output("out.status", out.status, torch.int32, "(rows,)", (rows,), like)
    check_kept_out(out.kept, kept_width, like)
    if n == 0:
        if out.logprobs is not None or out.top_logprobs is not None:
            raise ValueError("`out.logprobs` and `out.top_logprobs` must be None with logprobs=0, got tensors")
        return
    if not isinstance(out.top_logprobs, TopLogprobs):
        raise TypeError(f"`out.top_logprobs` must be a TopLogprobs, got {type(out.top_logprobs).__name__}")
    checks.check_output("out.logprobs", out.logprobs, torch.float32, "(rows,)", (rows,), like)
    ids, values = out.top_logprobs
    checks.check_output("out.top_logprobs.token_ids", ids, torch.int64, "(rows, logprobs)", (rows, n), like)
    checks.check_output("out.top_logprobs.logprobs", values, torch.float32, "(rows, logprobs)", (rows, n), like)


def tensors_of(output: SampleOutput) -> list[Tensor]:
    """Returns the result's tensors, in a fixed order."""
    tensors = [output.token_ids, output.status]
    if output.logprobs is not None and output.top_logprobs is not None:
        tensors += [output.logprobs, *output.top_logprobs]
    return [*tensors, *(output.kept or ())]


def sample_output(tensors: Sequence[Tensor], logprobs: int, output_kept: bool) -> SampleOutput:
    """Returns the result whose tensors are those of `tensors_of`, of a call with these arguments."""
    token_ids, status, *more = tensors
    kept = KeptRows(*more[-3:]) if output_kept else None
    if logprobs == 0:
        return SampleOutput(token_ids, None, None, status, kept)
    return SampleOutput(token_ids, more[0], TopLogprobs(more[1], more[2]), status, kept)


def output_arguments(out: SampleOutput, n: int) -> dict[str, int]:
    """Returns keyword arguments for pygen._C.SamplePlan. The tensors must outlive the plan."""
    top = out.top_logprobs
    return {
        "token_ids_ptr": out.token_ids.data_ptr(),
        "status_ptr": out.status.data_ptr(),
        "num_logprobs": n,
        "logprobs_ptr": 0 if out.logprobs is None else out.logprobs.data_ptr(),
        "top_ids_ptr": 0 if top is None else top.token_ids.data_ptr(),
        "top_logprobs_ptr": 0 if top is None else top.logprobs.data_ptr(),
        **kept_arguments(out.kept),
    }
