"""A plan bound to beams: the same stages on log-probabilities, with `beam_step` as the last op."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypedDict

import torch
from torch import Tensor

from pygen.ops import prepare_beam_step, prepare_process_logits
from pygen.ops._beam_state import NEVER_WINS, BeamState
from pygen.plan.pipeline import Op
from pygen.plan.stages import Fused

if TYPE_CHECKING:
    from pygen.plan.plan import Plan


class SearchArguments(TypedDict, total=False):
    """Arguments of `beam_step` about the search."""

    length_penalty: float
    early_stopping: bool | str
    stopping_criteria: Callable[[Tensor], Tensor | bool] | None


class BeamBinding:
    """The rows of a beam search; see `Binding`. The caller's processors see the best beam of a prompt first, as in
    transformers; pygen's own see sequences by row, which stays within its prompt.

    """

    of_others = -math.inf

    def __init__(self, plan: Plan, state: BeamState, search: SearchArguments) -> None:
        self.state = state
        self._step: dict[str, Any] = {**search, **plan.noise}
        self.tokens = state.tokens

    def history(self, generated: int) -> Tensor:
        return self.state.history[:, : self.state.prompt_length + generated]

    def running(self) -> Tensor:
        state = self.state
        return ((state.running_scores > NEVER_WINS) & state.open[:, None]).reshape(-1)

    def order(self) -> Tensor:
        return self.state.slots.reshape(-1)

    def start(self, logits: Tensor) -> Tensor:
        return torch.log_softmax(logits.float(), dim=-1)

    def keeps(self, plan: Plan, last: Fused) -> bool:
        # An op without knobs keeps the log-softmax of its input.
        return plan.keep_scores or (plan.num_logprobs > 0 and bool(last.knobs))

    def shape(self, example: Tensor, first: bool, **knobs: Any) -> Op:
        prepared = prepare_process_logits(_like(example), state=self.state, **knobs)

        def run(scores: Tensor, *, step: int) -> Tensor:
            return prepared(self.start(scores) if first else scores, step=step)

        return run

    def choose(self, example: Tensor, first: bool, **knobs: Any) -> Op:
        return prepare_beam_step(example, self.state, normalized=not first, **knobs, **self._step)


def _like(example: Tensor) -> Tensor:
    return torch.empty_like(example, dtype=torch.float32, memory_format=torch.contiguous_format)
