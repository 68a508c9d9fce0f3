"""What the host learns of a step. Every tensor that a report returns is on the CPU."""

from __future__ import annotations

import math
from typing import NamedTuple, Protocol

from torch import Tensor

from pygen.ops import RowStatus


class InvalidRows(NamedTuple):
    """The first of `num_rows` rows whose scores allow no choice, and why.

    token_id: of its first NaN or +inf; None where it has neither, or the scores are gone.
    """

    row: int
    status: RowStatus
    num_rows: int
    token_id: int | None

    @classmethod
    def find(cls, bad: Tensor, status: Tensor) -> InvalidRows | None:
        """bad: (rows,) bool, where `status` (rows,) int32 matters. None without such a row."""
        rows = bad.nonzero()[:, 0].tolist()
        return cls(rows[0], RowStatus(int(status[rows[0]])), len(rows), None) if rows else None

    def located(self, logits: Tensor) -> InvalidRows:
        """The same with `token_id` from `logits` (rows, vocab_size)."""
        scores = logits[self.row]
        wrong = scores.isnan() if self.status == RowStatus.NAN else scores == math.inf
        return self._replace(token_id=int(wrong.int().argmax()) if bool(wrong.any()) else None)

    def describe(self, step: int) -> str:
        at = "" if self.token_id is None else f", first at token id {self.token_id}"
        what = {RowStatus.NAN: "NaN", RowStatus.POS_INF: "+inf"}.get(self.status, "no token that is allowed")
        others = f" ({self.num_rows} rows in all)" if self.num_rows > 1 else ""
        return (
            f"the scores of row {self.row} at step {step} hold {what}{at}{others}; "
            f"`on_invalid`='greedy' or 'eos' goes on"
        )


class Report(Protocol):
    """unfinished: how many rows, or with beams how many prompts, go on after the step."""

    unfinished: int

    def invalid(self) -> InvalidRows | None:
        """The rows without a choice; None without one, and where the call goes on with such rows."""
        ...


class StepReport(Report, Protocol):
    """A step of greedy search or sampling."""

    def token_ids(self) -> Tensor:
        """(rows,) int64, a copy: the tokens of the step."""
        ...

    def logprobs(self) -> Tensor | None:
        """(rows,) float32, a copy: of these tokens. None where the call does not keep them."""
        ...

    def reasons(self) -> list[str | None]:
        """Why each row has ended, "eos" or "stop"; None while it goes on."""
        ...


class BeamReport(Report, Protocol):
    """A step of a beam search."""

    def certain(self, sent: int, *, with_reason: bool) -> tuple[Tensor, Tensor | None]:
        """The generated tokens of prompt 0, (n,) int64, that every possible result begins with.

        sent: how many of them are known already. with_reason: leaves out a token that may turn out to be the last, and
        adds the log-probabilities of the fresh ones, (n - sent,) float32, if the call keeps them.
        """
        ...
