"""The definition of `token_logprobs` in plain torch: lookups in a float64 log-softmax."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pygen.ops._outputs import RowStatus, TokenLogprobs
from pygen.reference.sample import best_of


def token_logprobs(logits: Tensor, token_ids: Tensor, *, top: int = 0) -> TokenLogprobs:
    """See `pygen.ops.token_logprobs`, which checks the arguments."""
    rows, vocab_size = logits.shape
    scores = logits.float()
    status = row_statuses(scores)
    # In a row that is not OK these are NaN.
    logprobs = torch.log_softmax(scores.double(), dim=1).float()
    ids = token_ids.reshape(rows, -1)
    known = (ids >= 0) & (ids < vocab_size)
    own = logprobs.gather(1, ids.clamp(0, vocab_size - 1)).masked_fill(~known, math.nan)
    best = best_of(scores, logprobs, status, top) if top > 0 else None
    return TokenLogprobs(own.view(token_ids.shape), best, status)


def row_statuses(scores: Tensor) -> Tensor:
    """Returns the status of every row, (rows,) int32, the worst fault first. The maximum of a row with NaN is NaN."""
    largest = scores.amax(dim=1)
    status = torch.full_like(largest, RowStatus.OK, dtype=torch.int32)
    status[largest == -math.inf] = RowStatus.ALL_MASKED
    status[largest == math.inf] = RowStatus.POS_INF
    status[largest.isnan()] = RowStatus.NAN
    return status
