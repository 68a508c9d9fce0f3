"""Log-probabilities of the tokens that a beam search chooses, without the scores of all others."""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor

from pygen.ops import BeamOutput, TopLogprobs, token_logprobs
from pygen.ops._growth import grown_capacity, widened


class Beams(Protocol):
    """The state of a beam search: a `BeamState`, or one of groups."""

    @property
    def slots(self) -> Tensor: ...
    @property
    def batch_size(self) -> int: ...
    @property
    def prompt_length(self) -> int: ...
    @property
    def unfinished(self) -> Tensor: ...
    def tokens(self, generated: int) -> Tensor: ...
    def chosen(self, step: int | Tensor) -> tuple[Tensor, Tensor]: ...


class BeamLogprobs:
    """Keeps, for every step, ln softmax of a beam's scores at the tokens that it grew by.

    In every step `see` comes before the beams move, and `add` after.

    num_top: how many of the best of every beam are kept, too.
    raw: the scores are the model's logits; otherwise everything has been applied to them.
    """

    def __init__(self, state: Beams, capacity: int, num_top: int, *, raw: bool = False) -> None:
        """capacity: steps; more make the tables grow, unless `add` gets the steps in tensors."""
        self.num_top, self.raw = num_top, raw
        self._state = state
        self._num_beams = state.slots.shape[1]
        rows, device = state.slots.numel(), state.slots.device

        def empty(columns: int, dtype: torch.dtype) -> Tensor:
            return torch.empty((capacity, rows, columns), dtype=dtype, device=device)

        # By step: log-probabilities of the chosen tokens, the result of `BeamState.chosen`, and the best of every beam.
        self._tables: tuple[Tensor, ...] = (
            empty(2, torch.float32),
            empty(2, torch.int64),
            empty(2, torch.int64),
            empty(num_top, torch.int64),
            empty(num_top, torch.float32),
        )

    def see(self, scores: Tensor) -> None:
        """Takes a step's scores (rows, vocab_size) by row, before the beams move; `add` reads them."""
        self._scores, self._rows = scores, self._state.slots.reshape(-1).clone()

    def add(self, step: int | Tensor, chosen: tuple[Tensor, Tensor]) -> None:
        """step: where to write; an int, or (1,) int64. chosen: see `BeamState.chosen`."""
        n, (token_ids, parents) = self._num_beams, chosen
        # All tokens that beams of a prompt grew by are looked up in all its rows.
        of_prompts = token_ids.view(-1, 2 * n).repeat_interleave(n, dim=0)
        found = token_logprobs(self._scores, of_prompts, top=self.num_top)
        columns = torch.arange(2 * n, device=token_ids.device).view(n, 2)
        rows = self._rows[parents.clamp(min=0)].view(-1, n, 2)
        values = found.logprobs[rows, columns].view(-1, 2)
        top = () if found.top_logprobs is None else [part[self._rows] for part in found.top_logprobs]
        if isinstance(step, int) and step >= len(self._tables[0]):
            capacity = grown_capacity(len(self._tables[0]), step + 1)
            self._tables = tuple(widened(table, capacity, dim=0) for table in self._tables)
        for table, of_step in zip(self._tables, (values, token_ids, parents, *top), strict=False):
            table[step] = of_step

    def take_over(self, other: BeamLogprobs, steps: int) -> None:
        """Makes the first `steps` steps of `other` the only ones here."""
        self._tables = tuple(table[:steps].clone() for table in other._tables)

    def of(self, best: BeamOutput) -> tuple[Tensor, TopLogprobs | None]:
        """Of the tokens that were generated in `best`, N of at most L: (N, L), 0 after the end of a hypothesis, and the
        best of every step, (N, L, num_top), -1 and -inf after the end."""
        beams = best.beam_indices.long()
        logprobs = torch.zeros(beams.shape, dtype=torch.float32, device=beams.device)
        steps, ended = torch.arange(beams.shape[1], device=beams.device), beams < 0
        values, token_ids, parents, top_ids, top_logprobs = self._tables
        if beams.numel() > 0:
            # The beam that a token makes is the one that the next token grew from.
            logprobs[:, :-1] = values[steps[:-1], beams[:, 1:].clamp(min=0), 0]
            last = (~ended).sum(1, keepdim=True).sub(1).clamp(min=0)
            token = best.sequences[:, self._state.prompt_length :].gather(1, last)
            is_it = (token_ids[last[:, 0], :, 1] == token) & (parents[last[:, 0], :, 1] == beams.gather(1, last))
            logprobs.scatter_(1, last, values[last, is_it.int().argmax(1, keepdim=True), 1])
        logprobs.masked_fill_(ended, 0.0)
        if self.num_top == 0:
            return logprobs, None
        ids, of_ids = (table[steps, beams.clamp(min=0)] for table in (top_ids, top_logprobs))
        return logprobs, TopLogprobs(
            ids.masked_fill(ended[..., None], -1), of_ids.masked_fill(ended[..., None], -math.inf)
        )

    def of_running(self, first: int, generated: int) -> Tensor:
        """(generated - first,): of the tokens from `first` on of what has become the best beam of prompt 0."""
        values, _, parents, *_ = self._tables
        beam = torch.zeros((), dtype=torch.int64, device=values.device)
        found = values.new_empty(generated - first)
        for step in range(generated - 1, first - 1, -1):
            found[step - first] = values[step, beam, 0]
            beam = parents[step, beam, 0]
        return found
