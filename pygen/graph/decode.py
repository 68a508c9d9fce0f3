"""Decoding by captured steps: launch, look one step late, take back what was too much."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor
from transformers import DynamicCache, EncoderDecoderCache

from pygen.graph import static_beam, static_sample
from pygen.graph.captures import CapturedStep, Slot
from pygen.graph.generator import LentGenerator
from pygen.graph.late_beam_monitor import LateBeamMonitor
from pygen.graph.late_monitor import LateMonitor
from pygen.graph.static_beam import StaticBeam
from pygen.graph.static_cache import EncoderDecoderStaticCache, StaticCache
from pygen.graph.static_sample import StaticSample
from pygen.graph.stop_poll import LAG, run_ahead
from pygen.ops import BeamState, DecodeState
from pygen.ops.beam_step import PreparedBeamStep
from pygen.ops.sample import PreparedSample
from pygen.plan.beam_pipeline import BeamBinding
from pygen.plan.pipeline import SampleBinding, bind_ops
from pygen.plan.plan import Plan

if TYPE_CHECKING:
    from pygen.models.transformers import TransformersAdapter


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
    """`pygen.decode.sample.sample` by replays of a captured step; the same tokens, and the same state at the end.

        prefill; draw token 0;  then for every token:  replay(forward of the last token, draw, bookkeeping)

    adapter: has been started with the slot's cache.
    """
    if monitor.cancelled():
        return 0
    logits = adapter.prefill(state.tokens(0))
    length = slot.cache.length
    ops: dict[int, PreparedSample] = bind_ops(plan, logits, SampleBinding(plan, state), max_new_tokens)
    form = static_sample.form_of([*ops.values()], state, num_logprobs=plan.num_logprobs, on_invalid=on_invalid)
    step = slot.step(adapter, form, lambda: StaticSample(logits, form, slot.cache.capacity), compile_options)
    _, growing = adapter.decode_arguments()
    if max_new_tokens > 1:
        slot.capture(step, growing, length, must=must_capture)
    head = step.head
    assert ops[0].noise is not None
    head.begin(state, ops[0].noise)

    def sent(number: int) -> None:
        monitor.record(number, logits, head.message.output)

    def look(number: int, words: Tensor) -> bool:
        return monitor.look(number, head.message.read(words, plan.num_logprobs > 0), logits_at)

    def logits_at(number: int) -> Tensor:
        return logits if number == 0 else _logits_again(step, growing, number, length)

    steps = _launch_and_look(step, logits, ops, look, max_steps=max_new_tokens, sent=sent)
    head.finish(state, steps)
    step.forward.begin(growing, steps, length + steps - 1)
    return steps


def beam_captured(
    adapter: TransformersAdapter,
    state: BeamState,
    plan: Plan,
    search: dict[str, Any],
    monitor: LateBeamMonitor,
    slot: Slot,
    *,
    max_new_tokens: int,
    compile_options: dict[str, Any] | None,
    must_capture: bool,
) -> int:
    """`pygen.decode.beam.beam` by replays of a captured step; the same beams, and the same state at the end.

        prefill; choose at step 0;  then for every token:  replay(forward, choose, bookkeeping, move the cache's rows)

    search: arguments of `beam_step` about the search. adapter: has been started with the slot's cache.
    """
    if monitor.cancelled():
        return 0
    logits = adapter.prefill(state.tokens(0))
    length = slot.cache.length
    slot.cache.share_prefix()
    ops: dict[int, PreparedBeamStep] = bind_ops(plan, logits, BeamBinding(plan, state, search), max_new_tokens)
    logprobs = monitor.logprobs
    form = static_beam.form_of(
        [*ops.values()],
        state,
        early_stopping=search["early_stopping"],
        top_logprobs=None if logprobs is None else logprobs.num_top,
    )
    step = slot.step(adapter, form, lambda: StaticBeam(logits, form, slot.cache, slot.cache.capacity), compile_options)
    _, growing = adapter.decode_arguments()
    if max_new_tokens > 1:
        slot.capture(step, growing, length, must=must_capture)
    head = step.head
    head.begin(state, ops[0])

    def launching(number: int) -> None:
        if monitor.gave_up():
            head.stop_after(number + 1)

    def take_over(steps: int) -> None:
        head.finish(state, steps)
        if logprobs is not None and head.logprobs is not None:
            logprobs.take_over(head.logprobs, steps)

    def look(number: int, words: Tensor) -> bool:
        if monitor.reads_search:
            take_over(number + 1)
        return monitor.look(number, head.message.read(words, False))

    lag = 0 if monitor.reads_search else LAG
    steps = _launch_and_look(step, logits, ops, look, max_steps=max_new_tokens, launching=launching, lag=lag)
    take_over(steps)
    step.forward.begin(growing, steps, length + steps - 1)
    return steps


def _nothing(number: int) -> None:
    """At a step where nothing is to be done."""


def _launch_and_look(
    step: CapturedStep[Any],
    logits: Tensor,
    ops: Mapping[int, PreparedSample | PreparedBeamStep],
    look: Callable[[int, Tensor], bool],
    *,
    max_steps: int,
    launching: Callable[[int], None] = _nothing,
    sent: Callable[[int], None] = _nothing,
    lag: int = LAG,
) -> int:
    """The steps up to the one of which `look`, given its message, says that it was the last; their number.

    logits: of the prompt. ops: the call's, by the first step of the segment that each is for. launching, sent: called
    before a step and after its message were queued.
    """
    head, noise = step.head, ops[0].noise
    assert noise is not None
    state = head.state.generator_state
    lent = None if state is None else LentGenerator(noise.generator, state, logits.numel(), max_steps)
    launched = looked = 0
    over = False

    def launch(number: int) -> None:
        nonlocal launched
        launching(number)
        if number in ops:
            head.set_knobs(ops[number].shaping)
        if number == 0:
            head(logits)
        else:
            step.replay()
        launched = number + 1
        step.mailbox.send(number, head.message.words)
        sent(number)

    def receive(number: int) -> bool:
        nonlocal looked, over
        words = step.mailbox.receive(number)
        looked = number + 1
        over = look(number, words)
        return over

    try:
        return run_ahead(launch, receive, max_steps=max_steps, lag=lag)[0]
    finally:
        if lent is not None:
            lent.give_back(looked, looked if over and head.STAYS_AT_THE_END else launched)


def _logits_again(step: CapturedStep[StaticSample], growing: Any, number: int, length: int) -> Tensor:
    """The logits of step `number`, which later replays have overwritten."""
    step.forward.begin(growing, number, length + number - 1)
    return step.forward.logits_after(step.head.column(number - 1))


def dynamic_copy(cache: StaticCache | EncoderDecoderStaticCache, config: Any) -> DynamicCache | EncoderDecoderCache:
    """The positions in use as a cache of the caller's own, as an eager call would return it."""
    if isinstance(cache, EncoderDecoderStaticCache):
        own, crossed = cache.self_attention_cache, cache.cross_attention_cache
        read = min(crossed.length, cache.encoder_length)
        # By its config, a cache of windows would drop what the decoder attends to of the encoder's output.
        of_crossed = None if any(own.is_sliding) else config
        return EncoderDecoderCache(_first(own, own.length, config), _first(crossed, read, of_crossed))
    return _first(cache, cache.length, config)


def _first(cache: StaticCache, length: int, config: Any) -> DynamicCache:
    copied = DynamicCache(config=config)
    for number, layer in enumerate(cache.layers):
        # A call that was cancelled before it began has written none.
        if length:
            copied.update(layer.keys[:, :, :length], layer.values[:, :, :length], number)
    return copied
