"""The model of an eager loop, without the rows that have ended; the loop sees all rows."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from pygen.call.call import Call
from pygen.decode.leaving import pays, refusal
from pygen.models.rows import ModuleStates, is_by_rows, map_leaves
from pygen.models.wrappers import inner
from pygen.ops import DecodeState
from pygen.plan.report import Report


class Forwards(Protocol):
    """The part of `ModelAdapter` that an eager loop uses."""

    def prefill(self, prompt_ids: Tensor) -> Tensor: ...

    def decode(self, token_ids: Tensor) -> Tensor: ...

    def rewind(self) -> None: ...


class LiveRows:
    """Lets rows leave the batch of the call's model once enough of them have ended.

    A forward reads the running rows only. In the logits and records of a step, a row that has left has the logits of
    its last forward, and zeros in attentions and hidden states.

    `compact_rows=True` raises NotImplementedError after the prefill where rows cannot leave; otherwise they stay.

    report: of the latest step that the host has seen, so it may be a step late.
    overlaps: the host may still read the logits of a step while it launches the next forward.
    """

    def __init__(self, call: Call, state: DecodeState, report: Report, *, overlaps: bool) -> None:
        self._adapter, self._model, self._must = call.adapter, inner(call.model), call.compact_rows is True
        self._state, self._report, self._overlaps = state, report, overlaps
        self._may_leave = True
        self._rows: Tensor | None = None
        self._count = state.rows

    def prefill(self, prompt_ids: Tensor) -> Tensor:
        self._states = ModuleStates(self._model)
        self._logits = self._adapter.prefill(prompt_ids)
        reason = self._reason()
        if reason is not None and self._must:
            raise refusal(reason)
        self._may_leave = reason is None
        return self._logits

    def decode(self, token_ids: Tensor) -> Tensor:
        if self._may_leave and pays(self._report.unfinished, self._count, at_any_size=self._must):
            self._let_leave(token_ids.shape[1] - self._state.prompt_length)
        if self._rows is None:
            self._logits = self._adapter.decode(token_ids)
            return self._logits
        logits = self._adapter.decode(token_ids.index_select(0, self._rows))
        if self._overlaps:
            self._logits = self._logits.clone()
        self._logits.index_copy_(0, self._rows, logits)
        for kept in self._adapter.records.values():
            kept[-1] = self._spread(kept[-1])
        return self._logits

    def rewind(self) -> None:
        self._adapter.rewind()

    def _let_leave(self, generated: int) -> None:
        self._may_leave = self._reason() is None
        stay = ~self._state.finished
        if self._adapter.shows_cache:
            # The cache of a row that has just ended lacks the last token, which the next forward reads.
            stay |= self._state.num_generated == generated
        rows = stay.nonzero()[:, 0]
        if not self._may_leave or not pays(len(rows), self._count, at_any_size=self._must):
            return
        if self._rows is None:
            self._logits = self._logits.clone(memory_format=torch.contiguous_format)
            kept = rows
        else:
            kept = torch.searchsorted(self._rows, rows)
        self._adapter.keep_rows(kept)
        self._rows, self._count = rows, len(rows)

    def _reason(self) -> str | None:
        name = type(self._model).__name__
        if any(self._count in tensor.shape for tensors in self._states.changed().values() for tensor in tensors):
            return f"{name} keeps states of its rows to itself"
        for record, kept in self._adapter.records.items():
            if kept and not is_by_rows(record, kept[-1], self._state.rows):
                return f"the rows of `{record}` of {name} are unknown"
        return self._adapter.rows_stay(self._count)

    def _spread(self, record: Any) -> Any:
        def spread(tensor: Tensor) -> Tensor:
            whole = tensor.new_zeros((self._state.rows, *tensor.shape[1:]))
            assert self._rows is not None
            return whole.index_copy_(0, self._rows.to(tensor.device), tensor)

        return map_leaves(spread, record)
