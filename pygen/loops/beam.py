"""Beam search and beam sampling: forward, choose, move the cache, repeat."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

from torch import Tensor

from pygen.integrations import ModelAdapter
from pygen.loops.beam_monitor import BeamMonitor
from pygen.loops.beam_state import BeamState
from pygen.ops import BeamStepOutput


class Shaped(NamedTuple):
    """What `beam_step` is given, by row, and the scores (rows, vocab_size) as the caller gets them, by beam."""

    scores: Tensor
    kept: Tensor | None


class BeamChooser(Protocol):
    def shape(self, logits: Tensor, step: int) -> Shaped:
        """Runs the processors that no op expresses."""
        ...

    def advance(self, scores: Tensor, step: int) -> BeamStepOutput:
        """Advances the state it is bound to."""
        ...


class BeamPlan(Protocol):
    def bind_beams(self, logits: Tensor, state: BeamState, *, criteria: Any) -> BeamChooser: ...


def beam(model: ModelAdapter, state: BeamState, plan: BeamPlan, monitor: BeamMonitor, *, max_new_tokens: int) -> int:
    """Searches until no prompt can improve, and returns the number of steps.

    The beams go into `state`. Each step reads one scalar from the device, and copies in the cache only what a row that
    changes beams does not share with its new beam.
    """
    if monitor.cancelled():
        return 0
    logits = model.prefill(state.tokens(0))
    choose = plan.bind_beams(logits, state, criteria=monitor.criteria)
    for step in range(max_new_tokens):
        shaped = choose.shape(logits, step)
        monitor.record(logits, shaped.kept)
        output = choose.advance(shaped.scores, step)
        if monitor.must_stop(step, logits, output) or step + 1 == max_new_tokens:
            return step + 1
        model.reorder(output.source_rows, output.shared, step)
        logits = model.decode(state.tokens(step + 1))
    return max_new_tokens
