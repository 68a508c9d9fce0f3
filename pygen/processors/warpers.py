"""Processors that reshape the distribution a token is drawn from: temperature, and the filters.

A filter keeps some scores as they are and gives the others `filter_value`; tokens that are gone already (-inf) count
as removed. A row that holds NaN or +inf, or nothing but -inf, loses no token. Definitions, with ties and edges, are
those of `ops.process_logits`. At least the first `min_tokens_to_keep` >= 1 of a filter's order stay.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from pygen.processors.base import LogitsProcessor, process
from pygen.rules import checked, integer, number

_INF = -float("Inf")


class TemperatureLogitsWarper(LogitsProcessor):
    """s / temperature, with a finite temperature > 0; below 1 the distribution becomes sharper.

    Below 1e-3, where the largest s would leave the range of its dtype, the temperature acts as the one at which it is
    2^100 (float16: 2^15) in magnitude, so that nothing becomes +inf.
    """

    supports_continuous_batching = True

    def __init__(self, temperature: float) -> None:
        if temperature == 0:
            raise ValueError("`temperature` must be a finite number > 0, got 0; `do_sample=False` is greedy search")
        self.temperature = float(checked("temperature", temperature, number("(0, inf)")))

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        scaled = scores / self.temperature
        if self.temperature >= 1e-3:
            return scaled
        largest = scores.amax(-1, keepdim=True)
        unfit = scaled.amax(-1, keepdim=True).isinf() & largest.isfinite()
        magnitude = 2.0**15 if scores.dtype == torch.float16 else 2.0**100
        return torch.where(unfit, scores / (largest.abs() / magnitude), scaled)


class TopKLogitsWarper(LogitsProcessor):
    """Keeps s >= the k-th largest with k = max(top_k, min_tokens_to_keep): ties at the boundary all stay."""

    supports_continuous_batching = True

    def __init__(self, top_k: int, filter_value: float = _INF, min_tokens_to_keep: int = 1) -> None:
        keep = checked("min_tokens_to_keep", min_tokens_to_keep, integer(), wrong_type=TypeError)
        self.top_k = max(checked("top_k", top_k, integer(1)), keep)
        self.filter_value = filter_value
        self.min_tokens_to_keep = keep

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return _filter(scores, self.filter_value, top_k=self.top_k)


class TopPLogitsWarper(LogitsProcessor):
    """Keeps, walking down from the largest, a token while the mass before it is < top_p (Holtzman et al. 2020). Of
    equal scores the highest ids stay.

    top_p: in [0, 1].
    """

    supports_continuous_batching = True

    def __init__(self, top_p: float, filter_value: float = _INF, min_tokens_to_keep: int = 1) -> None:
        self.top_p = float(checked("top_p", top_p, number("[0, 1]"), wrong_type=TypeError))
        self.filter_value = filter_value
        self.min_tokens_to_keep = _min_tokens(min_tokens_to_keep)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return _filter(scores, self.filter_value, top_p=self.top_p, min_tokens_to_keep=self.min_tokens_to_keep)


class TopHLogitsWarper(LogitsProcessor):
    """Keeps, of the 100 largest, the prefix whose entropy is within top_h of theirs: cumulative -sum p ln p <=
    top_h * H; the first always (Potraghloo et al. 2025).

    top_h: in (0, 1].
    """

    def __init__(self, top_h: float, filter_value: float = _INF) -> None:
        self.top_n = 100
        self.top_h = checked("top_h", top_h, number("(0, 1]"), wrong_type=TypeError)
        self.filter_value = filter_value

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return _filter(scores, self.filter_value, top_h=self.top_h)


class TopNSigmaLogitsWarper(LogitsProcessor):
    """Keeps s >= max s - n * sigma, with the standard deviation sigma of the scores that are left (Tang et al. 2024).

    top_n_sigma: n, finite and > 0. transformers has no such class.
    """

    def __init__(self, top_n_sigma: float, filter_value: float = _INF, min_tokens_to_keep: int = 1) -> None:
        self.top_n_sigma = float(checked("top_n_sigma", top_n_sigma, number("(0, inf)"), wrong_type=TypeError))
        self.filter_value = filter_value
        self.min_tokens_to_keep = _min_tokens(min_tokens_to_keep)

    def __call__(self, input_ids: Tensor | None, scores: Tensor) -> Tensor:
        minimum = self.min_tokens_to_keep
        return _filter(scores, self.filter_value, top_n_sigma=self.top_n_sigma, min_tokens_to_keep=minimum)


class MinPLogitsWarper(LogitsProcessor):
    """Keeps p >= min_p * max p (Nguyen et al. 2024).

    min_p: in [0, 1].
    """

    def __init__(self, min_p: float, filter_value: float = _INF, min_tokens_to_keep: int = 1) -> None:
        self.min_p = checked("min_p", min_p, number("[0, 1]"), wrong_type=TypeError)
        self.filter_value = filter_value
        self.min_tokens_to_keep = _min_tokens(min_tokens_to_keep)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return _filter(scores, self.filter_value, min_p=self.min_p, min_tokens_to_keep=self.min_tokens_to_keep)


class TypicalLogitsWarper(LogitsProcessor):
    """Keeps the tokens whose surprise is nearest to the entropy H: with d = |-ln p - H| ascending, d up to where the
    mass reaches `mass` (Meister et al. 2022).

    mass: in (0, 1).
    """

    def __init__(self, mass: float = 0.9, filter_value: float = _INF, min_tokens_to_keep: int = 1) -> None:
        self.filter_value = filter_value
        self.mass = float(checked("mass", mass, number("(0, 1)"), wrong_type=TypeError))
        self.min_tokens_to_keep = _min_tokens(min_tokens_to_keep)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return _filter(scores, self.filter_value, typical_p=self.mass, min_tokens_to_keep=self.min_tokens_to_keep)


class EpsilonLogitsWarper(LogitsProcessor):
    """Keeps p >= epsilon, and s >= the min_tokens_to_keep-th largest (Hewitt et al. 2022).

    epsilon: in (0, 1).
    """

    def __init__(self, epsilon: float, filter_value: float = _INF, min_tokens_to_keep: int = 1) -> None:
        self.epsilon = float(checked("epsilon", epsilon, number("(0, 1)"), wrong_type=TypeError))
        self.filter_value = filter_value
        self.min_tokens_to_keep = _min_tokens(min_tokens_to_keep)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        knobs: dict[str, float] = {"epsilon_cutoff": self.epsilon, "min_tokens_to_keep": self.min_tokens_to_keep}
        return _filter(scores, self.filter_value, **knobs)


class EtaLogitsWarper(LogitsProcessor):
    """Keeps p >= min(epsilon, sqrt(epsilon) * exp(-H)), and s >= the min_tokens_to_keep-th largest (Hewitt et al.
    2022).

    epsilon: in (0, 1); the attribute holds it as a float32 tensor on `device`.
    """

    def __init__(
        self, epsilon: float, filter_value: float = _INF, min_tokens_to_keep: int = 1, device: str = "cpu"
    ) -> None:
        self._eta_cutoff = float(checked("epsilon", epsilon, number("(0, 1)"), wrong_type=TypeError))
        self.epsilon = torch.tensor(self._eta_cutoff, device=device)
        self.filter_value = filter_value
        self.min_tokens_to_keep = _min_tokens(min_tokens_to_keep)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        knobs: dict[str, float] = {"eta_cutoff": self._eta_cutoff, "min_tokens_to_keep": self.min_tokens_to_keep}
        return _filter(scores, self.filter_value, **knobs)


def _min_tokens(value: object) -> int:
    count: int = checked("min_tokens_to_keep", value, integer(1))
    return count


def _filter(scores: Tensor, filter_value: float, **knobs: Any) -> Tensor:
    filtered = process(scores, **knobs)
    if filter_value == -math.inf:
        return filtered
    removed = filtered == -math.inf
    return scores.masked_fill(removed & ~removed.all(-1, keepdim=True), filter_value)
