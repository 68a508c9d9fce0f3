"""Greedy search and sampling: forward, choose, look, repeat; from a resolved call to its output."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import Tensor

from pygen.call.call import Call
from pygen.decode.leaving import why_rows_stay
from pygen.decode.live_rows import Forwards, LiveRows
from pygen.decode.monitor import Monitor
from pygen.decode.observer import Recorder, StepObserver
from pygen.decode.progress import progress_bar
from pygen.decode.run import run
from pygen.graph.eligibility import choose_slot, compile_options
from pygen.models.widths import embedded_ids
from pygen.ops import DecodeState
from pygen.ops._growth import first_capacity
from pygen.outputs import GenerateOutput, make_output
from pygen.plan.pipeline import Chooser, bind_plan, check_plan
from pygen.plan.plan import Plan, make_plan, num_top_logprobs

if TYPE_CHECKING:
    from pygen.graph.captures import Slot


def generate_by_sampling(call: Call) -> Tensor | GenerateOutput:
    """Greedy search and sampling: by captured steps where `choose_slot` says so, else eagerly."""
    plan = make_plan(call)
    slot = choose_slot(call, plan)
    if slot is not None:
        with slot.taken():
            return _generate_captured(call, plan, slot)

    rows_leave = why_rows_stay(call) is None
    return generate_step_by_step(call, plan, functools.partial(bind_plan, plan), rows_leave=rows_leave)


def generate_step_by_step(
    call: Call,
    plan: Plan,
    bind: Callable[[Tensor, DecodeState], Chooser],
    *,
    rows_leave: bool = False,
    **start: Any,
) -> Tensor | GenerateOutput:
    """One forward and one choice after the other.

    bind: see `sample`. rows_leave: whether rows that have ended leave the batch. start: arguments of `Call.start`.
    """

    def loop(state: DecodeState, recorder: Recorder, monitor: Monitor) -> int:
        steps = observer(call, plan, state, recorder)
        ahead = state.token_ids.device.type != "cpu" and call.adapter.can_rewind
        return sample(
            LiveRows(call, state, steps, overlaps=ahead) if rows_leave else call.adapter,
            state,
            bind,
            steps,
            monitor,
            max_new_tokens=call.lengths.max_new_tokens,
            ahead=ahead,
        )

    return generate_tokens(call, plan, loop, **start)


def sample(
    model: Forwards,
    state: DecodeState,
    bind: Callable[[Tensor, DecodeState], Chooser],
    steps: StepObserver,
    monitor: Monitor,
    *,
    max_new_tokens: int,
    ahead: bool,
) -> int:
    """Generates until every row has finished, and returns the number of steps. The tokens go into `state`.

    bind: prepares the choice for logits like those given, as `bind_plan` does.
    ahead: launches a forward before it looks at the step before, so that a GPU never waits for the host.
    """
    if monitor.cancelled():
        return 0
    return run(EagerSample(model, state, bind, steps, lag=int(ahead)), monitor, max_steps=max_new_tokens)


class EagerSample:
    """A `Stepper` whose launch is a forward. No token is drawn from a forward too many, so the lag changes nothing."""

    def __init__(
        self,
        model: Forwards,
        state: DecodeState,
        bind: Callable[[Tensor, DecodeState], Chooser],
        steps: StepObserver,
        *,
        lag: int,
    ) -> None:
        self.lag = lag
        self._model, self._state, self._steps = model, state, steps
        self._logits = model.prefill(state.tokens(0))
        self._choose = bind(self._logits, state)
        self._launched = self._chosen = 0

    def launch(self, step: int) -> None:
        if step > self._chosen:
            self._advance()
        if step > 0:
            self._logits = self._model.decode(self._state.tokens(step))
        self._launched = step + 1

    def report(self, step: int) -> StepObserver:
        if step >= self._chosen:
            self._advance()
        return self._steps.report()

    def finish(self, steps: int) -> None:
        if self._launched > steps:
            self._model.rewind()

    def close(self) -> None:
        """An eager stepper holds nothing that must be given back."""

    def _advance(self) -> None:
        """Chooses the tokens of the next step."""
        step, logits = self._chosen, self._logits
        self._chosen = step + 1
        self._steps.observe(step, logits, self._choose(logits, step))


def _generate_captured(call: Call, plan: Plan, slot: Slot) -> Tensor | GenerateOutput:
    from pygen.graph.cache_copy import dynamic_copy
    from pygen.graph.steppers import CapturedSample
    from pygen.models.transformers import TransformersAdapter

    adapter, max_new_tokens = call.adapter, call.lengths.max_new_tokens
    assert isinstance(adapter, TransformersAdapter)

    def loop(state: DecodeState, recorder: Recorder, monitor: Monitor) -> int:
        steps = 0
        if not monitor.cancelled():
            stepper = CapturedSample(
                adapter,
                state,
                plan,
                slot,
                record=recorder.add,
                max_new_tokens=max_new_tokens,
                on_invalid=vars(call.config)["on_invalid"],
                compile_options=compile_options(call.config),
                must_capture=call.runtime == "graph",
            )
            steps = run(stepper, monitor, max_steps=max_new_tokens)
        if call.wants_dict:
            # The cache of the slot belongs to the next call.
            adapter.replace_cache(dynamic_copy(slot.cache, call.model.config))
        return steps

    return generate_tokens(call, plan, loop, capacity=max_new_tokens, cache=slot.cache)


def generate_tokens(
    call: Call,
    plan: Plan,
    loop: Callable[[DecodeState, Recorder, Monitor], int],
    monitor_class: type[Monitor] = Monitor,
    *,
    capacity: int | None = None,
    **start: Any,
) -> Tensor | GenerateOutput:
    """Runs a loop that appends a token to every row in each of its steps, of which it returns the number.

    capacity: steps that the state holds from the start; None where the loop makes it grow.
    start: arguments of `Call.start`.
    """
    config, adapter, max_new_tokens = call.config, call.adapter, call.lengths.max_new_tokens
    _check_padding(call)
    check_invalid_ends(call)
    state = DecodeState.create(
        call.prompt.input_ids.repeat_interleave(call.num_copies, dim=0),
        max_new_tokens,
        step_capacity=first_capacity(max_new_tokens) if capacity is None else capacity,
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
        kept=bool(plan.kept),
    )
    if call.streamer is not None:
        call.streamer.put(state.tokens(0).to("cpu", copy=True))
    with progress_bar(call.progress, max_new_tokens) as bar:
        monitor = monitor_class(
            state.rows,
            max_new_tokens,
            max_time=call.stopping.max_time,
            cancel=call.cancel,
            streamer=call.streamer,
            progress=bar,
        )
        steps = loop(state, recorder, monitor)

    sequences = state.tokens(steps)
    sequences = sequences if steps == state.step_capacity else sequences.clone()
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
        kept=recorder.kept(steps),
        **adapter.recorded(),
    )


def observer(call: Call, plan: Plan, state: DecodeState, recorder: Recorder) -> StepObserver:
    """The observer of an eager loop of `call`."""
    return StepObserver(
        state,
        recorder,
        criteria=call.criteria,
        pads=call.pads,
        on_invalid=vars(call.config)["on_invalid"],
        num_raw_logprobs=plan.num_raw_logprobs,
    )


def check_invalid_ends(call: Call) -> None:
    """Raises ValueError where invalid rows are to end by a token that does not exist."""
    if vars(call.config)["on_invalid"] == "eos" and max(call.stopping.eos_token_ids or [-1]) < 0:
        raise ValueError(f"`on_invalid`='eos' needs `eos_token_id` >= 0, got {call.config.eos_token_id}")


def _check_padding(call: Call) -> None:
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


def _may_end(call: Call, vocab_size: int) -> bool:
    ends = call.stopping.eos_token_ids or ()
    return bool(call.criteria) or any(0 <= token_id < vocab_size for token_id in ends)


def _visible(plan: Plan, call: Call) -> Tensor | None:
    """The rows' mask for the penalties, or None where they act on nothing or nothing is masked."""
    visible = call.prompt.visible() if plan.reads_history else None
    return None if visible is None else visible.repeat_interleave(call.num_copies, dim=0)
