"""Speculative sampling as in the papers, on lists of Python floats, and its noise in Python integers."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Sequence
from typing import NamedTuple

from pygen.ops import RowStatus
from tests.helpers.philox import ONES, philox_in_integers


class Verdict(NamedTuple):
    """The tokens of a row. `clear` means that no decision was closer than BAND."""

    accepted: int
    token_id: int
    status: int
    clear: bool


# float32 arithmetic may order two numbers with a smaller relative distance either way.
BAND = 1e-5


def verify_row(
    target: Sequence[Sequence[float]],
    drafts: Sequence[int],
    draft: Sequence[Sequence[float]] | None,
    temperature: float,
    uniform: Callable[[int, int], float],
    exponential: Callable[[int, int], float],
) -> Verdict:
    """Verifies one row of float32 scores. uniform(i, token_id), exponential(i, token_id): noise of position i."""
    clear = True
    for i, x in enumerate(target):
        token = drafts[i] if i < len(drafts) and 0 <= drafts[i] < len(x) else None
        numbers = [score for score in x if not math.isnan(score)]
        best = x.index(max(numbers)) if numbers else 0
        status = status_of(x)
        if temperature == 0:
            if status == RowStatus.OK and token == best:
                continue
            return Verdict(i, best, status, clear)
        if status == RowStatus.OK and token is not None and draft is not None:
            status = status_of(draft[i])
        if status != RowStatus.OK:
            return Verdict(i, best, status, clear)
        p = softmax(x, temperature)
        weights = p
        if token is not None:
            q = softmax(draft[i], temperature) if draft is not None else [float(j == token) for j in range(len(x))]
            ratio = math.inf if q[token] == 0 else p[token] / q[token]
            u = uniform(i, token)
            clear = clear and abs(u - ratio) > BAND
            if p[token] > 0 and u < ratio:
                continue
            rest = [max(a - b, 0.0) for a, b in zip(p, q, strict=True)]
            clear = clear and sum(rest) > BAND
            weights = rest if sum(rest) > 0 else p
        race = [math.log(w) - math.log(exponential(i, j)) if w > 0 else -math.inf for j, w in enumerate(weights)]
        winner = race.index(max(race))
        clear = clear and all(race[winner] - race[j] > BAND for j in range(len(race)) if j != winner)
        return Verdict(i, winner, status, clear)
    raise AssertionError("the position behind the drafts ends every row")


def softmax(scores: Sequence[float], temperature: float) -> list[float]:
    largest = max(scores)
    weights = [math.exp((score - largest) / temperature) for score in scores]
    return [weight / sum(weights) for weight in weights]


def status_of(scores: Sequence[float]) -> int:
    if any(math.isnan(score) for score in scores):
        return RowStatus.NAN
    return {math.inf: RowStatus.POS_INF, -math.inf: RowStatus.ALL_MASKED}.get(max(scores), RowStatus.OK)


def to_float32(value: float) -> float:
    return float(struct.unpack("f", struct.pack("f", value))[0])


def philox_noise(row_seed: int, step: int) -> tuple[Callable[[int, int], float], Callable[[int, int], float]]:
    """Returns `uniform` and `exponential` for `verify_row`, from a row seed and the first draft's step."""

    def u(i: int, token_id: int, stream: int) -> float:
        word = philox_in_integers((token_id >> 2, (step + i) & ONES, stream, 0), (row_seed & ONES, row_seed >> 32))
        return min(to_float32((word[token_id & 3] + 0.5) / 2**32), 1 - 2**-24)

    return lambda i, token_id: u(i, token_id, 2), lambda i, token_id: -math.log1p(-u(i, token_id, 0))
