"""The tokens of a step on their way from the op that chose them to the rows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pygen.batch.row import Row
from pygen.graph.mailbox import mailbox
from pygen.ops import SampleOutput


class Chosen:
    """The output of `sample` for `rows`. The copy to the host is queued at once, before the next forward."""

    def __init__(self, rows: Sequence[Row], output: SampleOutput, logits: Tensor | None) -> None:
        """logits: where the tokens were chosen from, to name an invalid one; None where they will be overwritten."""
        self.rows, self._output, self._logits = rows, output, logits
        if output.token_ids.device.type != "cpu":
            words = [output.token_ids, output.status.long()]
            if output.logprobs is not None:
                words.append(output.logprobs.view(torch.int32).long())
            sent = torch.cat(words)
            self._mailbox = mailbox(sent, lag=0)
            self._mailbox.send(0, sent)

    def look(self) -> None:
        """Waits for the tokens, and hands them to the rows."""
        token_ids, status, logprobs = self._lists()
        for at, row in enumerate(self.rows):
            if row.end is None:
                logits = None if self._logits is None else self._logits[at]
                row.take(
                    self._output, at, token_ids[at], status[at], None if logprobs is None else logprobs[at], logits
                )

    def _lists(self) -> tuple[list[int], list[int], list[float] | None]:
        output, count = self._output, len(self.rows)
        if output.token_ids.device.type == "cpu":
            logprobs = None if output.logprobs is None else output.logprobs.tolist()
            return output.token_ids.tolist(), output.status.tolist(), logprobs
        words = self._mailbox.receive(0).split(count)
        logprobs = words[2].int().view(torch.float32).tolist() if len(words) == 3 else None
        return words[0].tolist(), words[1].tolist(), logprobs
