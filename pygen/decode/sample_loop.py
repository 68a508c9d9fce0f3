"""Greedy search and sampling: forward, choose, look, repeat."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from pygen.decode.monitor import Monitor
from pygen.models.adapter import ModelAdapter
from pygen.ops import DecodeState
from pygen.plan.pipeline import Chooser


def sample(
    model: ModelAdapter,
    state: DecodeState,
    bind: Callable[[Tensor, DecodeState], Chooser],
    monitor: Monitor,
    *,
    max_new_tokens: int,
    ahead: bool,
) -> int:
    """Generates until every row has finished, and returns the number of steps.

    bind: prepares the choice for logits like those given, as `Plan.bind` does.

    The tokens go into `state`. Each step reads one scalar from the device: right after the draw, or with `ahead` after
    the next forward was launched, so that a GPU never waits for the host. The forward that turns out to be one too many
    is taken back; no token is drawn from it, so both orders give the same result.
    """
    if monitor.cancelled():
        return 0
    logits = model.prefill(state.tokens(0))
    choose = bind(logits, state)
    for step in range(max_new_tokens):
        choice = choose(logits, step)
        signal = monitor.observe(step, logits, choice)
        more = step + 1 < max_new_tokens
        upcoming = model.decode(state.tokens(step + 1)) if ahead and more else None
        if monitor.must_stop(step, signal, logits, choice) or not more:
            if upcoming is not None:
                model.rewind()
            return step + 1
        logits = upcoming if upcoming is not None else model.decode(state.tokens(step + 1))
    return max_new_tokens
