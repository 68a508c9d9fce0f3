"""The tokens of a step on their way from the op that chose them to the rows."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from pygen.batch.host_copy import HostCopy
from pygen.batch.row import ChosenToken, Row
from pygen.ops import KeptRows, RowStatus, SampleOutput, TokenLogprobs, TopLogprobs


class Chosen:
    """The output of `sample` for `rows`. The copies to the host are queued at once, before the next forward."""

    def __init__(
        self, rows: Sequence[Row], output: SampleOutput, raw: TokenLogprobs | None, logits: Tensor | None
    ) -> None:
        """raw: of the model's logits, where a row asks for them. logits: None where they will be overwritten."""
        self.rows, self._logits = rows, logits
        assert output.kept is None or isinstance(output.kept, KeptRows)
        self._copy = HostCopy(
            [
                output.token_ids,
                output.status,
                *_logprobs(output.logprobs, output.top_logprobs),
                *((None,) * 3 if raw is None else _logprobs(raw.logprobs, raw.top_logprobs)),
                *(output.kept or (None,) * 3),
            ]
        )

    def look(self) -> None:
        """Waits for the tokens, and hands them to the rows."""
        token_ids, status, *rest = self._copy.wait()
        assert token_ids is not None and status is not None
        processed, raw, kept = rest[:3], rest[3:6], rest[6:]
        for at, (row, token_id, code) in enumerate(zip(self.rows, token_ids.tolist(), status.tolist(), strict=True)):
            if row.end is not None:
                continue
            logprob, *tops = raw if row.plan.num_raw_logprobs > 0 else processed
            row.take(
                ChosenToken(
                    token_id,
                    RowStatus(code),
                    None if logprob is None else float(logprob[at]),
                    None if tops[0] is None or tops[1] is None else TopLogprobs(tops[0][at], tops[1][at]),
                    _kept_by(kept, at),
                    None if self._logits is None else self._logits[at],
                )
            )


def _logprobs(logprobs: Tensor | None, top: TopLogprobs | None) -> tuple[Tensor | None, ...]:
    return (logprobs, None, None) if top is None else (logprobs, *top)


def _kept_by(kept: Sequence[Tensor | None], at: int) -> tuple[Tensor | None, float] | None:
    token_ids, counts, log_mass = kept
    if token_ids is None or counts is None or log_mass is None:
        return None
    count = int(counts[at])
    # A copy, because the op writes there again.
    stored = token_ids[at, :count].clone() if count <= token_ids.shape[1] else None
    return stored, float(log_mass[at])
