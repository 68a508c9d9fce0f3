"""The device-side state of one decoding call."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pygen.ops._growth import grown_capacity, widened


@dataclass
class DecodeState:
    """Everything about the rows that changes while tokens are drawn, in tensors of the model's device.

    The op that draws also writes here: at `step` the token goes to column `prompt_length + step` of `token_ids` (and of
    `history`), `num_generated` and `finished` are advanced and `unfinished` is counted anew. Rows that were finished
    before the step get `pad_token_id`.

    token_ids: (rows, capacity) int64, prompt first; columns that were not written yet are undefined.
    history: (rows, capacity) int64, what penalties and n-gram bans read. `token_ids` itself, or a copy with -1 (outside
        every vocabulary, so ignored) at masked prompt positions.
    prompt_length: columns of the prompt, the same for every row.
    num_generated: (rows,) int64, tokens generated so far, the end-of-sequence token included.
    finished: (rows,) bool.
    unfinished: (1,) int64, the number of rows that are not finished.
    eos_token_ids: (n,) int64, or None when no token ends a row.
    pad_token_id: what finished rows emit.
    steps: (rows,) int64 or None. Where given, row r is at step steps[r] whatever step a call names, and the op that
        draws counts it up: so a captured graph goes on with every replay. The caller sees to it that columns exist.
    generator_state: replaces the torch.Generator of the call, and is advanced instead of it: its `get_state()` on the
        CPU, (2,) int64 seed and offset on CUDA. None: the generator itself.
    max_new_tokens: steps that the call makes at most; fewer may have columns.
    grown: how often `reserve` replaced tensors. Ops prepared before hold the old ones.
    """

    token_ids: Tensor
    history: Tensor
    prompt_length: int
    num_generated: Tensor
    finished: Tensor
    unfinished: Tensor
    eos_token_ids: Tensor | None
    pad_token_id: int
    steps: Tensor | None = None
    generator_state: Tensor | None = None
    max_new_tokens: int | None = None
    grown: int = 0

    @classmethod
    def create(
        cls,
        prompt_ids: Tensor,
        max_new_tokens: int,
        *,
        step_capacity: int | None = None,
        eos_token_ids: list[int] | None = None,
        pad_token_id: int = 0,
        visible: Tensor | None = None,
    ) -> DecodeState:
        """State before the first step.

        prompt_ids: (rows, prompt_length) int64.
        step_capacity: the number of steps that have columns; None is `max_new_tokens`.
        visible: (rows, prompt_length), zero where penalties must not look; None where they see the whole prompt.
        """
        rows, prompt_length = prompt_ids.shape
        device = prompt_ids.device
        capacity = prompt_length + (max_new_tokens if step_capacity is None else step_capacity)
        token_ids = torch.empty((rows, capacity), dtype=torch.int64, device=device)
        token_ids[:, :prompt_length] = prompt_ids
        history = token_ids
        if visible is not None:
            history = torch.empty_like(token_ids)
            history[:, :prompt_length] = prompt_ids.masked_fill(visible == 0, -1)
        return cls(
            token_ids=token_ids,
            history=history,
            prompt_length=prompt_length,
            num_generated=torch.zeros(rows, dtype=torch.int64, device=device),
            finished=torch.zeros(rows, dtype=torch.bool, device=device),
            unfinished=torch.full((1,), rows, dtype=torch.int64, device=device),
            eos_token_ids=torch.tensor(eos_token_ids, dtype=torch.int64, device=device) if eos_token_ids else None,
            pad_token_id=pad_token_id,
            max_new_tokens=max_new_tokens,
        )

    @property
    def rows(self) -> int:
        return self.token_ids.shape[0]

    def ending_token(self, vocab_size: int) -> Tensor:
        """(1,) int64: the first of `eos_token_ids`, not None here, that may come; found without waiting for a GPU."""
        assert self.eos_token_ids is not None
        may_come = (self.eos_token_ids >= 0) & (self.eos_token_ids < vocab_size)
        return self.eos_token_ids.index_select(0, may_come.int().argmax(0, keepdim=True))

    @property
    def step_capacity(self) -> int:
        """The number of steps that have columns."""
        return self.token_ids.shape[1] - self.prompt_length

    def reserve(self, steps: int) -> None:
        """Replaces `token_ids` and `history` by wider tensors if they lack columns for `steps` steps."""
        if steps <= self.step_capacity:
            return
        capacity = self.prompt_length + grown_capacity(self.step_capacity, steps, self.max_new_tokens)
        is_history = self.history is self.token_ids
        self.token_ids = widened(self.token_ids, capacity)
        self.history = self.token_ids if is_history else widened(self.history, capacity)
        self.grown += 1

    def tokens(self, generated: int) -> Tensor:
        """(rows, prompt_length + generated): a view of the prompt and the first `generated` tokens."""
        return self.token_ids[:, : self.prompt_length + generated]

    def column(self, step: int) -> Tensor:
        """(rows,): a view of the tokens of `step`."""
        return self.token_ids[:, self.prompt_length + step]
