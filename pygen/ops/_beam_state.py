"""The device-side state of one beam search."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pygen.ops._growth import grown_capacity, widened

# transformers' substitute for minus infinity. It is finite, so that a prompt without a live beam keeps an order.
# float32 rounds away any score added to it.
NEVER_WINS = -1e9


@dataclass
class BeamState:
    """Running beams and finished hypotheses of every prompt, in tensors on the model's device.

    B prompts with n beams have B * n rows; those of prompt b are b * n ... b * n + n - 1. P is the number of prompt
    columns, T the capacity in steps. A *row* is an index into the model's batch and cache and never moves. A *beam* is
    a rank, 0 the best, and `slots` says which row holds it. So a step copies a row only if a beam has several children.

    token_ids: (rows, P + T) int64, by row: the tokens that the model has read, and the next one. Columns that were not
        written yet are undefined.
    history: (rows, P + T) int64, read by penalties and n-gram bans. It is `token_ids` itself, or a copy with -1
        (outside every vocabulary, so ignored) at masked prompt positions.
    prompt_length: P.
    num_beams: n.
    eos_token_ids: (k,) int64, or None if no token ends a hypothesis.
    pad_token_id: the padding after a shorter hypothesis, and the token that a dead beam feeds to the model.
    slots: (B, n) int64, the row that holds each beam.
    shared: (B, n, n) int32, the number of generated positions that two rows of a prompt have in common.
    running_scores: (B, n) float32, sums of scores, best first; -inf for a dead beam.
    step_tokens, step_parents: (T, rows) int64 and int32. Beam j of prompt b after step t ends in
        step_tokens[t, b * n + j] and grew from beam step_parents[t, b * n + j] - b * n of the step before.
    finished_scores: (B, n) float32, normalised by length, best first; NEVER_WINS for a missing hypothesis.
    finished: (B, n) bool, whether a hypothesis exists.
    finished_steps, finished_tokens, finished_parents: (B, n) int64, int64 and int32: the step of its last token (-1:
        the bare prompt), that token, and its flat parent beam.
    open: (B,) bool, whether a running beam can still improve the finished hypotheses. Once False, it stays so.
    unfinished: (1,) int64, the number of open prompts; 0 once the search is over.
    steps: (rows,) int64 or None. If given, all rows are at step steps[0], whatever step a call passes, and the op that
        advances the state adds 1 to each: so a captured graph advances with every replay. Once `unfinished` is 0, later
        steps leave such a state unchanged. The caller must provide the columns.
    limit: (1,) int64 or None. If given, the search takes at most limit[0] steps instead of T.
    generator_state: replaces the torch.Generator of the call, as in `DecodeState`.
    max_steps: `limit` as a number on the host; None is T.
    grown: as in `DecodeState`.
    """

    token_ids: Tensor
    history: Tensor
    prompt_length: int
    num_beams: int
    eos_token_ids: Tensor | None
    pad_token_id: int
    slots: Tensor
    shared: Tensor
    running_scores: Tensor
    step_tokens: Tensor
    step_parents: Tensor
    finished_scores: Tensor
    finished: Tensor
    finished_steps: Tensor
    finished_tokens: Tensor
    finished_parents: Tensor
    open: Tensor
    unfinished: Tensor
    steps: Tensor | None = None
    limit: Tensor | None = None
    generator_state: Tensor | None = None
    max_steps: int | None = None
    grown: int = 0

    @classmethod
    def create(
        cls,
        prompt_ids: Tensor,
        max_new_tokens: int,
        num_beams: int,
        *,
        step_capacity: int | None = None,
        eos_token_ids: list[int] | None = None,
        pad_token_id: int = 0,
        visible: Tensor | None = None,
    ) -> BeamState:
        """Creates the state before the first step.

        prompt_ids: (B, prompt_length) int64.
        step_capacity: T; None is `max_new_tokens`.
        visible: (B, prompt_length), 0 at positions that penalties must ignore; None shows them the whole prompt.
        """
        batch_size, prompt_length = prompt_ids.shape
        rows, shape, device = batch_size * num_beams, (batch_size, num_beams), prompt_ids.device

        def full(shape: tuple[int, ...], value: float, dtype: torch.dtype) -> Tensor:
            return torch.full(shape, value, dtype=dtype, device=device)

        capacity = max_new_tokens if step_capacity is None else step_capacity
        token_ids = torch.empty((rows, prompt_length + capacity), dtype=torch.int64, device=device)
        token_ids[:, :prompt_length] = prompt_ids.repeat_interleave(num_beams, dim=0)
        history = token_ids
        if visible is not None:
            history = torch.empty_like(token_ids)
            shown = prompt_ids.masked_fill(visible == 0, -1)
            history[:, :prompt_length] = shown.repeat_interleave(num_beams, dim=0)
        # All beams start equal, so the first step may expand only the first.
        running_scores = full(shape, NEVER_WINS, torch.float32)
        running_scores[:, 0] = 0.0
        return cls(
            token_ids=token_ids,
            history=history,
            prompt_length=prompt_length,
            num_beams=num_beams,
            eos_token_ids=torch.tensor(eos_token_ids, dtype=torch.int64, device=device) if eos_token_ids else None,
            pad_token_id=pad_token_id,
            slots=torch.arange(rows, device=device).view(shape),
            shared=full((batch_size, num_beams, num_beams), 0, torch.int32),
            running_scores=running_scores,
            step_tokens=full((capacity, rows), -1, torch.int64),
            step_parents=full((capacity, rows), -1, torch.int32),
            finished_scores=full(shape, NEVER_WINS, torch.float32),
            finished=full(shape, 0, torch.bool),
            finished_steps=full(shape, -1, torch.int64),
            finished_tokens=full(shape, -1, torch.int64),
            finished_parents=full(shape, -1, torch.int32),
            open=full((batch_size,), 1, torch.bool),
            unfinished=full((1,), batch_size, torch.int64),
            limit=full((1,), max_new_tokens, torch.int64) if capacity < max_new_tokens else None,
            max_steps=max_new_tokens,
        )

    @property
    def rows(self) -> int:
        return self.token_ids.shape[0]

    @property
    def batch_size(self) -> int:
        return self.slots.shape[0]

    @property
    def step_capacity(self) -> int:
        """T, the capacity in steps."""
        return self.step_tokens.shape[0]

    @property
    def max_new_tokens(self) -> int:
        """The maximum number of steps."""
        return self.step_capacity if self.max_steps is None else self.max_steps

    def reserve(self, steps: int) -> None:
        """Replaces the tables with longer ones if they lack capacity for `steps` steps."""
        if steps <= self.step_capacity:
            return
        capacity = grown_capacity(self.step_capacity, steps, self.max_steps)
        is_history = self.history is self.token_ids
        self.token_ids = widened(self.token_ids, self.prompt_length + capacity)
        self.history = self.token_ids if is_history else widened(self.history, self.prompt_length + capacity)
        self.step_tokens, self.step_parents = (
            widened(table, capacity, dim=0) for table in (self.step_tokens, self.step_parents)
        )
        self.grown += 1

    @property
    def num_candidates(self) -> int:
        """K, the number of candidates per prompt: num_beams of them survive even if all others end."""
        num_eos = 0 if self.eos_token_ids is None else self.eos_token_ids.numel()
        return max(2, 1 + num_eos) * self.num_beams

    def tokens(self, generated: int) -> Tensor:
        """Returns (rows, P + generated) by row: a view of the prompt and the first `generated` tokens."""
        return self.token_ids[:, : self.prompt_length + generated]

    def chosen(self, step: int | Tensor) -> tuple[Tensor, Tensor]:
        """Returns the tokens chosen at `step`, the latest one, and their flat parent beams, (rows, 2) int64 each.

        Row b * n + j is for beam j of prompt b and for finished hypothesis j of prompt b.

        step: an int, or (1,) int64.
        """
        tokens, parents = self.step_tokens[step].reshape(-1), self.step_parents[step].reshape(-1)
        ended = self.finished_tokens.reshape(-1), self.finished_parents.reshape(-1)
        return torch.stack([tokens, ended[0]], dim=1), torch.stack([parents, ended[1]], dim=1).long()

    def sequences(self, generated: int) -> Tensor:
        """Returns (rows, P + generated) by beam: a copy, the best beam of a prompt first."""
        return self.tokens(generated)[self.slots.reshape(-1)]
