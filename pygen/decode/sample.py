"""Greedy search and sampling: forward, choose, look, repeat; from a resolved call to its output."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from torch import Tensor

from pygen.call.call import Call
from pygen.decode.monitor import Monitor, Recorder
from pygen.decode.progress import progress_bar
from pygen.graph.eligibility import choose_slot, compile_options
from pygen.models.adapter import ModelAdapter
from pygen.models.widths import embedded_ids
from pygen.ops import DecodeState
from pygen.ops._room import first_room
from pygen.outputs import GenerateOutput, make_output
from pygen.plan.pipeline import Chooser, bind_plan, check_plan
from pygen.plan.plan import Plan, make_plan, num_top_logprobs

if TYPE_CHECKING:
    from pygen.graph.captures import Slot


AnyMonitor = TypeVar("AnyMonitor", bound=Monitor)


def generate_by_sampling(call: Call) -> Tensor | GenerateOutput:
    """Greedy search and sampling: by captured steps where `choose_slot` says so, else eagerly."""
    plan = make_plan(call)
    slot = choose_slot(call, plan)
    if slot is not None:
        with slot.taken():
            return _generate_captured(call, plan, slot)

    return generate_step_by_step(call, plan, functools.partial(bind_plan, plan))


def generate_step_by_step(
    call: Call, plan: Plan, bind: Callable[[Tensor, DecodeState], Chooser], **start: Any
) -> Tensor | GenerateOutput:
    """One forward and one choice after the other. bind: see `sample`. start: arguments of `Call.start`."""

    def loop(state: DecodeState, monitor: Monitor) -> int:
        ahead = state.token_ids.device.type != "cpu" and call.adapter.can_rewind
        return sample(call.adapter, state, bind, monitor, max_new_tokens=call.lengths.max_new_tokens, ahead=ahead)

    return generate_tokens(call, plan, loop, Monitor, **start)


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


def _generate_captured(call: Call, plan: Plan, slot: Slot) -> Tensor | GenerateOutput:
    from pygen.graph.decode import dynamic_copy, sample_captured
    from pygen.graph.late_monitor import LateMonitor
    from pygen.models.transformers import TransformersAdapter

    adapter = call.adapter
    assert isinstance(adapter, TransformersAdapter)

    def loop(state: DecodeState, monitor: LateMonitor) -> int:
        steps = sample_captured(
            adapter,
            state,
            plan,
            monitor,
            slot,
            max_new_tokens=call.lengths.max_new_tokens,
            on_invalid=vars(call.config)["on_invalid"],
            compile_options=compile_options(call.config),
            must_capture=call.runtime == "graph",
        )
        if call.wants_dict:
            # The slot's own is the next call's.
            adapter.replace_cache(dynamic_copy(slot.cache, call.model.config))
        return steps

    return generate_tokens(call, plan, loop, LateMonitor, room=call.lengths.max_new_tokens, cache=slot.cache)


def generate_tokens(
    call: Call,
    plan: Plan,
    loop: Callable[[DecodeState, AnyMonitor], int],
    monitor_class: type[AnyMonitor],
    room: int | None = None,
    **start: Any,
) -> Tensor | GenerateOutput:
    """Runs a loop that appends a token to every row in each of its steps, of which it returns the number.

    room: steps that the state has room for from the start; None where the loop makes more as it goes.
    start: arguments of `Call.start`.
    """
    config, adapter, max_new_tokens = call.config, call.adapter, call.lengths.max_new_tokens
    on_invalid = vars(config)["on_invalid"]
    _check_padding(call, on_invalid)
    state = DecodeState.create(
        call.prompt.input_ids.repeat_interleave(call.num_copies, dim=0),
        max_new_tokens,
        room=first_room(max_new_tokens) if room is None else room,
        eos_token_ids=call.stopping.eos_token_ids,
        pad_token_id=call.tokens.pad or 0,
        visible=_visible(plan, call),
    )
    check_plan(plan, state)
    call.start(**start)

    recorder = Recorder(
        state,
        max_new_tokens,
        scores=call.wants_dict and bool(config.output_scores),
        logits=call.wants_dict and bool(config.output_logits),
        top_logprobs=num_top_logprobs(config),
    )
    if call.streamer is not None:
        call.streamer.put(state.tokens(0).to("cpu", copy=True))
    with progress_bar(call.progress, max_new_tokens) as bar:
        monitor = monitor_class(
            state,
            recorder,
            criteria=call.criteria,
            pads=call.pads,
            on_invalid=on_invalid,
            max_time=call.stopping.max_time,
            cancel=call.cancel,
            streamer=call.streamer,
            progress=bar,
        )
        steps = loop(state, monitor)

    sequences = state.tokens(steps)
    sequences = sequences if steps == state.room else sequences.clone()
    if not call.wants_dict:
        return sequences
    logprobs, top_logprobs = recorder.logprobs(steps)
    return make_output(
        adapter.output_class(beams=False),
        sequences=sequences,
        scores=recorder.scores,
        logits=recorder.logits,
        cache=adapter.cache,
        finish_reason=monitor.finish_reasons(),
        logprobs=logprobs,
        top_logprobs=top_logprobs,
        **adapter.recorded(),
    )


def _check_padding(call: Call, on_invalid: str) -> None:
    pad = call.tokens.pad
    if call.pads and pad is None:
        raise ValueError("`pad_token_id` must be set where rows can finish before others")
    if call.pads and call.rows > 1 and pad is not None and pad < 0:
        raise ValueError(f"`pad_token_id` must be >= 0 where rows can finish before others, got {pad}")
    size = None if call.adapter.is_encoder_decoder else embedded_ids(call.model)
    if call.pads and call.rows > 1 and pad is not None and size is not None and pad >= size and _may_end(call, size):
        raise ValueError(
            f"`pad_token_id` must be one of the {size} ids that the model embeds, where rows can finish before others, "
            f"got {pad}"
        )
    if on_invalid == "eos" and max(call.stopping.eos_token_ids or [-1]) < 0:
        raise ValueError(f"`on_invalid`='eos' needs `eos_token_id` >= 0, got {call.config.eos_token_id}")


def _may_end(call: Call, vocab_size: int) -> bool:
    ends = call.stopping.eos_token_ids or ()
    return bool(call.criteria) or any(0 <= token_id < vocab_size for token_id in ends)


def _visible(plan: Plan, call: Call) -> Tensor | None:
    """The rows' mask for the penalties, or None where they act on nothing or nothing is masked."""
    visible = call.prompt.visible() if plan.reads_history else None
    return None if visible is None else visible.repeat_interleave(call.num_copies, dim=0)
