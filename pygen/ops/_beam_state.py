"""The device-side state of one beam search."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pygen.ops._growth import grown_capacity, widened

# What stands for minus infinity where transformers has it: finite, so that a batch item without a live beam keeps an
# order. float32 rounds away whatever is added to it.
NEVER_WINS = -1e9


@dataclass
class BeamState:
    """Running beams and finished hypotheses of every prompt, in tensors of the model's device.

    With B prompts, n beams, P prompt columns and space for T steps there are B * n rows; those of prompt b are
    b * n ... b * n + n - 1. A *row* is a place in the model's batch and cache and never moves; a *beam* is a rank, 0
    the best, and `slots` says which row holds it. So a step copies a row only where one beam has several children.

    token_ids: (rows, P + T) int64, by row: what the model has seen and the token it sees next; columns that were not
        written yet are undefined.
    history: (rows, P + T) int64, what penalties and n-gram bans read. `token_ids` itself, or a copy with -1 (outside
        every vocabulary, so ignored) at masked prompt positions.
    prompt_length: P.
    num_beams: n.
    eos_token_ids: (k,) int64, or None when no token ends a hypothesis.
    pad_token_id: what follows the end of a shorter hypothesis, and what a dead beam feeds to the model.
    slots: (B, n) int64, the row that holds a beam.
    shared: (B, n, n) int32, how many of the generated positions two different rows of a prompt have in
        common.
    running_scores: (B, n) float32, sums of scores, best first; -inf for a dead beam.
    step_tokens, step_parents: (T, rows) int64 and int32. Beam j of prompt b after step t ends in
        step_tokens[t, b * n + j] and grew from beam step_parents[t, b * n + j] - b * n of the step before.
    finished_scores: (B, n) float32, normalised by length, best first; NEVER_WINS where there is none yet.
    finished: (B, n) bool, whether the place holds a hypothesis that ended.
    finished_steps, finished_tokens, finished_parents: (B, n) int64, int64 and int32: the step of its last token (-1:
        the bare prompt), that token, and the flat beam it grew from.
    open: (B,) bool, whether a running beam can still improve the finished ones; False for good.
    unfinished: (1,) int64, how many prompts are open; 0 once the search is over.
    steps: (rows,) int64 or None. Where given, all rows are at step steps[0] whatever step a call names, and the op that
        advances the state counts all of them up: so a captured graph goes on with every replay. Once `unfinished` is 0
        such a state stays as it is, whatever steps come. The caller sees to it that columns exist.
    limit: (1,) int64 or None. Where given, the search makes limit[0] steps at most and not T.
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
        """State before the first step.

        prompt_ids: (B, prompt_length) int64.
        step_capacity: T; None is `max_new_tokens`.
        visible: (B, prompt_length), zero where penalties must not look; None where they see the whole prompt.
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
        # All beams start equal, so only the first may be expanded in the first step.
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
        """T."""
        return self.step_tokens.shape[0]

    @property
    def max_new_tokens(self) -> int:
        """Steps of the search at most."""
        return self.step_capacity if self.max_steps is None else self.max_steps

    def reserve(self, steps: int) -> None:
        """Replaces the tables by longer ones if they lack space for `steps` steps."""
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
        """K: continuations looked at per prompt, enough for num_beams to survive if the others all end."""
        num_eos = 0 if self.eos_token_ids is None else self.eos_token_ids.numel()
        return max(2, 1 + num_eos) * self.num_beams

    def tokens(self, generated: int) -> Tensor:
        """(rows, P + generated) by row: a view of the prompt and the first `generated` tokens."""
        return self.token_ids[:, : self.prompt_length + generated]

    def chosen(self, step: int | Tensor) -> tuple[Tensor, Tensor]:
        """The tokens that `step`, the latest, has chosen, and the flat beams that they grew from: (rows, 2) int64, for
        b * n + j beam j of prompt b, and place j of its finished hypotheses.

        step: an int, or (1,) int64."""
        tokens, parents = self.step_tokens[step].reshape(-1), self.step_parents[step].reshape(-1)
        ended = self.finished_tokens.reshape(-1), self.finished_parents.reshape(-1)
        return torch.stack([tokens, ended[0]], dim=1), torch.stack([parents, ended[1]], dim=1).long()

    def sequences(self, generated: int) -> Tensor:
        """(rows, P + generated) by beam: a copy, the best beam of a prompt first."""
        return self.tokens(generated)[self.slots.reshape(-1)]
