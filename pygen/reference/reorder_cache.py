"""The definition of `reorder_cache` in plain torch: a gather, kept where a row moves."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def reorder_cache(
    cache_tensors: Tensor | Sequence[Tensor],
    beam_idx: Tensor,
    start: int | Tensor = 0,
    length: int | None = None,
    span: Tensor | None = None,
) -> None:
    """See `pygen.ops.reorder_cache`, which checks the arguments. The host reads no value of a tensor."""
    for tensor in [cache_tensors] if isinstance(cache_tensors, Tensor) else cache_tensors:
        used = tensor[:, :, :length]
        positions = torch.arange(used.shape[2], device=tensor.device)
        first = torch.as_tensor(start, device=tensor.device).expand(len(beam_idx))
        if span is None:
            moves = positions >= first[:, None]
        else:
            moves = (positions >= span[0] + first[:, None]) & (positions < span[1])
        used.copy_(torch.where(moves[:, None, :, None], used[beam_idx], used))
