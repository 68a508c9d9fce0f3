"""Appends a step's tokens to a `DecodeState` and ends rows: the definition that all kernels match."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pygen.ops._outputs import RowStatus

if TYPE_CHECKING:
    from pygen.ops._state import DecodeState


def append_tokens(state: DecodeState, token_ids: Tensor, step: int) -> None:
    """Appends the tokens of one step to the sequences of `state`, in place, and writes pad tokens into `token_ids`.

    A finished row gets the pad token. The others count one more generated token and finish at an EOS token. A state
    with a step counter uses it instead of `step`, and advances it.
    """
    token_ids.masked_fill_(state.finished, state.pad_token_id)
    steps = state.steps
    _write(state, token_ids, step if steps is None else steps)
    state.num_generated += ~state.finished
    if state.eos_token_ids is not None:
        state.finished |= torch.isin(token_ids, state.eos_token_ids) & ~state.finished
    count_unfinished(state)
    if steps is not None:
        steps += 1


def end_rows(state: DecodeState, ended: Tensor) -> None:
    """Ends the rows in `ended`, (rows,) bool: they emit the pad token from the next step on."""
    state.finished |= ended
    count_unfinished(state)


def end_invalid_rows(state: DecodeState, token_ids: Tensor, status: Tensor, step: int, vocab_size: int) -> None:
    """Ends rows without a valid choice: the EOS token replaces the fallback token of `step`, the latest one.

    token_ids: (rows,) int64 of the step, written too. status: (rows,) int32, values of `RowStatus`.
    """
    generated = step + 1 if state.steps is None else state.steps
    # A row counts this step if and only if it was not finished before.
    bad = (status != RowStatus.OK) & (state.num_generated == generated)
    token_ids.copy_(torch.where(bad, state.ending_token(vocab_size), token_ids))
    _write(state, token_ids, generated - 1)
    end_rows(state, bad)


def count_unfinished(state: DecodeState) -> None:
    state.unfinished.copy_((~state.finished).sum())


def _write(state: DecodeState, token_ids: Tensor, step: int | Tensor) -> None:
    if isinstance(step, int):
        state.token_ids[:, state.prompt_length + step] = token_ids
        state.history[:, state.prompt_length + step] = token_ids
        return
    columns = (state.prompt_length + step)[:, None]
    state.token_ids.scatter_(1, columns, token_ids[:, None])
    state.history.scatter_(1, columns, token_ids[:, None])
