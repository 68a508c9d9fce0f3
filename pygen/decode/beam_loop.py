"""Beam search and beam sampling: forward, choose, move the cache, repeat."""

from __future__ import annotations

from pygen.decode.beam_monitor import BeamMonitor
from pygen.models.adapter import ModelAdapter
from pygen.ops import BeamState
from pygen.plan.beam_pipeline import BeamBinding
from pygen.plan.pipeline import Pipeline
from pygen.plan.plan import Plan


def beam(
    model: ModelAdapter,
    state: BeamState,
    plan: Plan,
    binding: BeamBinding,
    monitor: BeamMonitor,
    *,
    max_new_tokens: int,
) -> int:
    """Searches until no prompt can improve, and returns the number of steps.

    The beams go into `state`. Each step reads one scalar from the device, and copies in the cache only what a row that
    changes beams does not share with its new beam.
    """
    if monitor.cancelled():
        return 0
    logits = model.prefill(state.tokens(0))
    pipeline = Pipeline(plan, logits, binding)
    for step in range(max_new_tokens):
        scores = pipeline.shape(logits, step)
        # Before the beams move.
        monitor.record(logits, pipeline.processed(scores, step))
        output = pipeline.choose(scores, step=step)
        stop = monitor.must_stop(step, logits, output)
        model.reorder(output.source_rows, output.shared, step)
        if stop or step + 1 == max_new_tokens:
            return step + 1
        pipeline.reorder(output.source_rows, state.step_parents[step])
        logits = model.decode(state.tokens(step + 1))
    return max_new_tokens
