"""The device-side state of one decoding call."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pygen.ops._growth import grown_capacity, widened


@dataclass
class DecodeState:
    """The state of the rows that changes while an op draws tokens, in tensors on the model's device.

    The op that draws updates it: at `step` it writes the token to column `prompt_length + step` of `token_ids` and
    `history`, advances `num_generated` and `finished`, and counts `unfinished`. Rows that were finished before the step
    get `pad_token_id`.

    token_ids: (rows, capacity) int64, prompt first; columns that were not written yet are undefined.
    history: (rows, capacity) int64, read by penalties and n-gram bans. It is `token_ids` itself, or a copy with -1
        (outside every vocabulary, so ignored) at masked prompt positions.
    prompt_length: columns of the prompt, the same for every row.
    num_generated: (rows,) int64, tokens generated so far, including the end-of-sequence token.
    finished: (rows,) bool.
    unfinished: (1,) int64, the number of unfinished rows.
    eos_token_ids: (n,) int64, or None if no token ends a row.
    pad_token_id: the token that finished rows emit.
    steps: (rows,) int64 or None. If given, row r is at step steps[r], whatever step a call passes, and the op that
        draws adds 1 to it: so a captured graph advances with every replay. The caller must provide the columns.
    generator_state: replaces the state of the call's torch.Generator, and ops advance it instead of the generator: the
        generator's `get_state()` on the CPU, (2,) int64 seed and offset on CUDA. None: ops use the generator.
    max_new_tokens: the maximum number of steps of the call; fewer may have columns.
    grown: how often `reserve` replaced tensors. Ops that were prepared before still use the old ones.
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
        """Creates the state before the first step.

        prompt_ids: (rows, prompt_length) int64.
        step_capacity: the number of steps that have columns; None is `max_new_tokens`.
        visible: (rows, prompt_length), 0 at positions that penalties must ignore; None shows them the whole prompt.
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
        """Returns (1,) int64: the first of `eos_token_ids` inside the vocabulary, without waiting for a GPU.

        `eos_token_ids` must not be None.
        """
        assert self.eos_token_ids is not None
        may_come = (self.eos_token_ids >= 0) & (self.eos_token_ids < vocab_size)
        return self.eos_token_ids.index_select(0, may_come.int().argmax(0, keepdim=True))

    @property
    def step_capacity(self) -> int:
        """The number of steps that have columns."""
        return self.token_ids.shape[1] - self.prompt_length

    def reserve(self, steps: int) -> None:
        """Replaces `token_ids` and `history` with wider tensors if they lack columns for `steps` steps."""
        if steps <= self.step_capacity:
            return
        capacity = self.prompt_length + grown_capacity(self.step_capacity, steps, self.max_new_tokens)
        is_history = self.history is self.token_ids
        self.token_ids = widened(self.token_ids, capacity)
        self.history = self.token_ids if is_history else widened(self.history, capacity)
        self.grown += 1

    def tokens(self, generated: int) -> Tensor:
        """Returns (rows, prompt_length + generated): a view of the prompt and the first `generated` tokens."""
        return self.token_ids[:, : self.prompt_length + generated]

    def column(self, step: int) -> Tensor:
        """Returns (rows,): a view of the tokens of `step`."""
        return self.token_ids[:, self.prompt_length + step]
