"""A checked call of `beam_step`, as backends take it, and the workspace that its two halves share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pygen.ops import _checks as checks
from pygen.ops._beam_state import BeamState
from pygen.ops._noise import Noise
from pygen.ops._outputs import BeamStepOutput
from pygen.ops._shaping import Shaping

# (B * K, prompt_length + step + 1) int64 candidates -> which of them end, (B * K,) bool or one bool for all.
StoppingCriteria = Callable[[Tensor], "Tensor | bool"]


@dataclass(frozen=True)
class BeamCall:
    """The checked arguments. The Prepared keeps `out` and the tensors behind pointers alive."""

    shaping: Shaping
    state: BeamState
    noise: Noise
    normalized: bool
    stops_when_full: bool  # once a prompt has n finished hypotheses, none joins
    normalisers: Tensor
    stopping_criteria: StoppingCriteria | None
    sorts_draws: bool  # sort drawn candidates by score
    out: BeamStepOutput

    @property
    def saved_state_ptr(self) -> int:
        """The address of the state that replaces the generator's, or 0."""
        return 0 if self.state.generator_state is None else self.state.generator_state.data_ptr()

    def ends(self, token_ids: Tensor, parents: Tensor, step: int) -> Tensor:
        """Returns (B, K) bool: the answer of `stopping_criteria` for candidates (B, K); a missing one has id -1."""
        rows = self.state.slots.gather(1, parents.clamp(min=0)).flatten()
        last = token_ids.masked_fill(token_ids < 0, self.state.pad_token_id)
        sequences = torch.cat([self.state.tokens(step)[rows], last.view(-1, 1)], dim=1)
        return self.answer(sequences).view(token_ids.shape)

    def answer(self, sequences: Tensor) -> Tensor:
        """Returns (B * K,) bool: the checked answer of `stopping_criteria` for the candidates' sequences."""
        assert self.stopping_criteria is not None
        answer = torch.as_tensor(self.stopping_criteria(sequences), device=sequences.device)
        name, count = "stopping_criteria(candidates)", len(sequences)
        checks.check_dtype(name, answer, torch.bool)
        if answer.dim():
            checks.check_shape(name, answer, "(B * K,)", (count,))
        return answer.expand(count)


@dataclass(frozen=True)
class BeamWorkspace:
    """The candidates that the first half of a step passes to the second."""

    candidate_ids: Tensor  # (B, K) int64
    candidate_parents: Tensor  # (B, K) int64
    candidate_scores: Tensor  # (B, K) float32
    ends: Tensor  # (B, K) bool, from the stopping criteria
    best_of_row: Tensor  # (rows, K) of 24 bytes each
    count_of_row: Tensor  # (rows,) int64

    @classmethod
    def create(cls, state: BeamState) -> BeamWorkspace:
        shape, count, device = (state.batch_size, state.num_candidates), state.num_candidates, state.token_ids.device
        return cls(
            candidate_ids=torch.empty(shape, dtype=torch.int64, device=device),
            candidate_parents=torch.empty(shape, dtype=torch.int64, device=device),
            candidate_scores=torch.empty(shape, dtype=torch.float32, device=device),
            ends=torch.zeros(shape, dtype=torch.bool, device=device),
            best_of_row=torch.empty((state.rows, count, 3), dtype=torch.int64, device=device),
            count_of_row=torch.empty(state.rows, dtype=torch.int64, device=device),
        )

    def kernel_arguments(self) -> dict[str, int]:
        return {f"{name}_ptr": tensor.data_ptr() for name, tensor in vars(self).items()}
