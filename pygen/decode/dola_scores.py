"""How DoLa (Chuang et al. 2023) scores tokens by contrasting layers, in plain torch on any device."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn.functional import kl_div

# Tokens below this part of the largest probability never follow.
RELATIVE_TOP = 0.1
# Of models with more layers than these, "low" and "high" are parts of the lowest and highest ones.
_DEEP, _PART = 40, 20


def candidate_layers(dola_layers: str | list[int], num_layers: int, *, tied: bool) -> list[int]:
    """The layers that the last one may be contrasted with, 0 for the embeddings.

    "low": every second layer of the lower half, or of the lowest 20 of more than 40; "high": of the upper half, or the
    highest 20. A list: those of its layers that are below the last one.
    tied: whether the head shares the embeddings' weights, which then predict the token that was read: "low" then
    begins with layer 2, or with 1 of two layers.

    ValueError for a list without such a layer.
    """
    is_deep = num_layers > _DEEP
    if dola_layers == "low":
        first = min(2, num_layers - 1) if tied else 0
        return [*range(first, _PART if is_deep else num_layers // 2, 2)] or [first]
    if dola_layers == "high":
        return [*range(num_layers - _PART if is_deep else num_layers // 2, num_layers, 2)]
    layers = [layer for layer in dola_layers if isinstance(layer, int) and layer < num_layers]
    if not layers:
        raise ValueError(f"`dola_layers` must hold a layer in [0, {num_layers}), got {dola_layers}")
    return layers


def contrast(logits: Tensor, early: Iterable[Tensor]) -> Tensor:
    """(rows, vocab_size) float32: ln p - ln q where p is at least `RELATIVE_TOP` times its largest, elsewhere -inf.

    p: the probabilities of the last layer. q: those of the layer that is furthest from it, of several the first; each
    row has its own. With m the mean of p and q, the distance is that of the authors' code: KL(m || p) + KL(m || q).

    logits: (rows, vocab_size) of the last layer. early: of the other layers, at least one.
    """
    p = logits.float().log_softmax(-1)
    base, furthest = p, torch.full_like(p[:, 0], -math.inf)
    for layer in early:
        q = layer.to(p.device).float().log_softmax(-1)
        distance = _distance(p, q)
        is_further = distance > furthest
        base = torch.where(is_further[:, None], q, base)
        furthest = torch.where(is_further, distance, furthest)
    least = p.amax(-1, keepdim=True) + math.log(RELATIVE_TOP)
    return (p - base).masked_fill(p < least, -math.inf)


def _distance(p: Tensor, q: Tensor) -> Tensor:
    """(rows,) of log-probabilities (rows, vocab_size)."""
    m = 0.5 * (p.exp() + q.exp())
    # What neither of them may be adds nothing.
    terms = [kl_div(x, m, reduction="none").nan_to_num(nan=0.0, posinf=math.inf).mean(-1) for x in (p, q)]
    return terms[0] + terms[1]
