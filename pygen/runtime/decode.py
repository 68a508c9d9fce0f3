"""Greedy search and sampling by captured steps: launch, look one step late, take back what was too much."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor
from transformers import DynamicCache

from pygen.loops.state import DecodeState
from pygen.pipeline import bind_draws
from pygen.plan import Plan
from pygen.runtime.captures import CapturedStep, Slot
from pygen.runtime.generator import LentGenerator
from pygen.runtime.late_monitor import LateMonitor
from pygen.runtime.static_cache import StaticCache
from pygen.runtime.static_sample import form_of
from pygen.runtime.stop_poll import run_ahead

if TYPE_CHECKING:
    from pygen.integrations.transformers import TransformersAdapter


def sample_captured(
    adapter: TransformersAdapter,
    state: DecodeState,
    plan: Plan,
    monitor: LateMonitor,
    slot: Slot,
    *,
    max_new_tokens: int,
    on_invalid: str,
    compile_options: dict[str, Any] | None,
    must_capture: bool,
) -> int:
    """`pygen.loops.sample.sample` by replays of a captured step; the same tokens, and the same state at the end.

        prefill; draw token 0;  then for every token:  replay(forward of the last token, draw, bookkeeping)

    adapter: has been started with the slot's cache.
    """
    if monitor.cancelled():
        return 0
    logits = adapter.prefill(state.tokens(0))
    length = slot.cache.length
    draws = {first: draw for first, draw in bind_draws(plan, logits, state).items() if first < max_new_tokens}
    ops = list(draws.values())
    form = form_of(ops, state, num_logprobs=plan.num_logprobs, on_invalid=on_invalid)
    step = slot.step(adapter, logits, form, compile_options)
    _, growing = adapter.decode_arguments()
    if max_new_tokens > 1:
        slot.capture(step, growing, length, must=must_capture)
    noise, sample, forward = ops[0].noise, step.sample, step.forward
    assert noise is not None
    sample.begin(state, noise)
    words = sample.state.generator_state
    launched = drawn = 0
    lent = None if words is None else LentGenerator(noise.generator, words, logits.numel())

    def launch(number: int) -> None:
        nonlocal launched
        if number in draws:
            sample.set_knobs(draws[number].shaping)
        if number == 0:
            sample(logits)
        else:
            step.replay()
        launched = number + 1
        step.mailbox.send(number, sample.message.words)
        monitor.record(number, logits, sample.message.output)

    def look(number: int) -> bool:
        nonlocal drawn
        message = sample.message.read(step.mailbox.receive(number), plan.num_logprobs > 0)
        drawn = number + 1
        return monitor.look(number, message, logits_at)

    def logits_at(number: int) -> Tensor:
        return logits if number == 0 else _logits_again(step, growing, number, length)

    try:
        steps, _ = run_ahead(launch, look, max_steps=max_new_tokens)
    finally:
        if lent is not None:
            lent.give_back(drawn, launched)
    sample.finish(state, steps)
    forward.begin(growing, steps, length + steps - 1)
    return steps


def _logits_again(step: CapturedStep, growing: Any, number: int, length: int) -> Tensor:
    """The logits of step `number`, which later replays have overwritten."""
    step.forward.begin(growing, number, length + number - 1)
    return step.forward.logits_after(step.sample.column(number - 1))


def dynamic_copy(cache: StaticCache, config: Any) -> DynamicCache:
    """The positions in use as a cache of the caller's own, as an eager call would return it."""
    copied = DynamicCache(config=config)
    for number, layer in enumerate(cache.layers):
        copied.update(layer.keys[:, :, : cache.length], layer.values[:, :, : cache.length], number)
    return copied
