"""A checked call of `verify_draft`, as backends take it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from pygen.ops._noise import Noise


@dataclass(frozen=True)
class DraftCall:
    """The checked arguments, as backends take them. `temperature` is 0 in greedy rows."""

    target: Tensor
    draft_token_ids: Tensor
    draft: Tensor | None
    lengths: int | Tensor
    temperature: float | Tensor
    noise: Noise
    step: int
    uniforms: Tensor | None
