"""Beam search and beam sampling: forward, choose, move the cache, repeat; from a resolved call to its output."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol, TypedDict, cast

from torch import Tensor

from pygen.call.call import Call
from pygen.config.config import GenerationMode
from pygen.decode.beam_cache import align_cache
from pygen.decode.beam_monitor import BeamMonitor
from pygen.decode.beam_observer import BeamRecorder, EagerBeamReport, SharedTokens, candidate_criteria
from pygen.decode.group_plans import check_groups
from pygen.decode.progress import progress_bar
from pygen.decode.run import run
from pygen.graph.eligibility import choose_slot, compile_options
from pygen.models.adapter import ModelAdapter
from pygen.models.rows import select_rows
from pygen.ops import BeamOutput, BeamState, BeamStepOutput, TopLogprobs, beam_finalize
from pygen.ops._growth import first_capacity
from pygen.outputs import GenerateOutput, make_output
from pygen.plan.beam_logprobs import BeamLogprobs, Beams
from pygen.plan.beam_pipeline import BeamBinding, SearchArguments
from pygen.plan.noise import beam_noise
from pygen.plan.pipeline import Pipeline, check_knobs
from pygen.plan.plan import Plan, make_plan, num_top_logprobs, wants_raw_logprobs

if TYPE_CHECKING:
    from pygen.graph.captures import Slot


def generate_with_beams(call: Call) -> Tensor | GenerateOutput:
    """Beam search (`num_beams` > 1), or beam sampling with `do_sample=True`: by captured steps where `choose_slot` says
    so, else eagerly."""
    if not isinstance(call.settings.do_sample, bool | None):
        raise ValueError("`do_sample` must be one bool for all rows with `num_beams` > 1, got several")
    check_groups(call.num_copies, 1, call.config.diversity_penalty, call.config.do_sample)
    plan = dataclasses.replace(make_plan(call), noise=beam_noise(call))
    slot = choose_slot(call, plan)
    if slot is not None:
        with slot.taken():
            return _generate_captured(call, plan, slot)
    state = BeamState.create(*sizes(call), **texts(call, plan), step_capacity=first_steps(call))

    def loop(search: Search) -> int:
        return searched_eagerly(call, plan, state, BeamBinding(plan, state, search.arguments), search)

    return searched(call, state, loop, lambda count: beam_finalize(state, count))


def beam(
    model: ModelAdapter,
    state: Beams,
    chooser: BeamChooser,
    report: EagerBeamReport,
    monitor: BeamMonitor,
    *,
    max_new_tokens: int,
) -> int:
    """Searches until no prompt can improve, and returns the number of steps. The beams go into `state`."""
    if monitor.cancelled():
        return 0
    return run(EagerBeam(model, state, chooser, report), monitor, max_steps=max_new_tokens)


class EagerBeam:
    """A `Stepper` whose launch is a forward and its choice. Each step copies in the cache only what a row that changes
    beams does not share with its new beam."""

    lag = 0

    def __init__(self, model: ModelAdapter, state: Beams, chooser: BeamChooser, report: EagerBeamReport) -> None:
        self._model, self._state, self._choose, self._report = model, state, chooser, report
        self._logits = model.prefill(state.tokens(0))
        chooser.bind(self._logits)
        self._output: BeamStepOutput | None = None

    def launch(self, step: int) -> None:
        output = self._output
        if output is not None:
            self._model.reorder(output.source_rows, output.shared, step - 1)
            self._choose.reorder(step - 1, output)
            self._logits = self._model.decode(self._state.tokens(step))
        self._output = self._choose(self._logits, step)

    def report(self, step: int) -> EagerBeamReport:
        assert self._output is not None
        return self._report.read(step, self._logits, self._output)

    def finish(self, steps: int) -> None:
        if self._output is not None:
            self._model.reorder(self._output.source_rows, self._output.shared, steps - 1)

    def close(self) -> None:
        """An eager stepper holds nothing that must be given back."""


class BeamChooser(Protocol):
    """What chooses the beams of a step, and records them."""

    def bind(self, logits: Tensor) -> None:
        """logits: an example of what will come."""
        ...

    def __call__(self, logits: Tensor, step: int) -> BeamStepOutput: ...
    def reorder(self, step: int, output: BeamStepOutput) -> None:
        """Tells processors with a memory how rows moved in `step`."""
        ...


class PipelineChooser:
    """The `BeamChooser` of a plan that is bound to one state."""

    def __init__(self, plan: Plan, state: BeamState, binding: BeamBinding, recorder: BeamRecorder) -> None:
        self._plan, self._state, self._binding, self._recorder = plan, state, binding, recorder

    def bind(self, logits: Tensor) -> None:
        self._pipeline = Pipeline(self._plan, logits, self._binding)

    def __call__(self, logits: Tensor, step: int) -> BeamStepOutput:
        scores = self._pipeline.shape(logits, step)
        # Before the beams move.
        self._recorder.see(logits, self._pipeline.processed(scores, step))
        output: BeamStepOutput = self._pipeline.choose(scores, step=step)
        self._recorder.add(step)
        return output

    def reorder(self, step: int, output: BeamStepOutput) -> None:
        self._pipeline.reorder(output.source_rows, self._state.step_parents[step])


def _generate_captured(call: Call, plan: Plan, slot: Slot) -> Tensor | GenerateOutput:
    from pygen.graph.cache_copy import dynamic_copy
    from pygen.graph.steppers import CapturedBeam
    from pygen.models.transformers import TransformersAdapter

    adapter, max_new_tokens = call.adapter, call.lengths.max_new_tokens
    assert isinstance(adapter, TransformersAdapter)
    state = BeamState.create(*sizes(call), **texts(call, plan))

    def loop(search: Search) -> int:
        # Nothing asks about candidates: a captured step cannot call Python, and the stepper ends a call that gave up.
        arguments: SearchArguments = {**search.arguments, "stopping_criteria": None}
        check_knobs(plan, BeamBinding(plan, state, arguments), state.rows, state.token_ids.device)
        call.start(cache=slot.cache)
        steps = 0
        if not search.monitor.cancelled():
            stepper = CapturedBeam(
                adapter,
                state,
                plan,
                arguments,
                slot,
                logprobs=search.recorder.logprobs,
                gave_up=search.monitor.gave_up,
                certain=None if search.shared is None else search.shared.certain,
                raises=vars(call.config)["on_invalid"] == "raise",
                max_new_tokens=max_new_tokens,
                compile_options=compile_options(call.config),
                must_capture=call.runtime == "graph",
            )
            steps = run(stepper, search.monitor, max_steps=max_new_tokens)
        if call.wants_dict:
            # The cache of the slot belongs to the next call.
            adapter.replace_cache(dynamic_copy(slot.cache, call.model.config))
        return steps

    return searched(call, state, loop, lambda count: beam_finalize(state, count))


def searched_eagerly(call: Call, plan: Plan, state: BeamState, binding: BeamBinding, search: Search) -> int:
    """The loop of a search over one state; checks everything but the vocabulary before the model runs."""
    check_knobs(plan, binding, state.rows, state.token_ids.device)
    call.start()
    chooser = PipelineChooser(plan, state, binding, search.recorder)
    max_new_tokens = call.lengths.max_new_tokens
    return beam(call.adapter, state, chooser, search.report, search.monitor, max_new_tokens=max_new_tokens)


@dataclasses.dataclass(frozen=True)
class Search:
    """What the loop of one search needs besides model and state.

    shared: finds the tokens to stream; None without a streamer.
    """

    arguments: SearchArguments
    recorder: BeamRecorder
    report: EagerBeamReport
    monitor: BeamMonitor
    shared: SharedTokens | None


def _logprobs(call: Call, state: Beams) -> BeamLogprobs | None:
    num_top = num_top_logprobs(call.config)
    if num_top is None:
        return None
    return BeamLogprobs(state, first_steps(call), num_top, raw=wants_raw_logprobs(call.config))


def sizes(call: Call) -> tuple[Tensor, int, int]:
    return call.prompt.input_ids, call.lengths.max_new_tokens, call.num_copies


def first_steps(call: Call) -> int:
    return first_capacity(call.lengths.max_new_tokens)


class StateArguments(TypedDict):
    """Arguments of a state about how texts begin and end."""

    eos_token_ids: list[int] | None
    pad_token_id: int
    visible: Tensor | None


def texts(call: Call, plan: Plan) -> StateArguments:
    return {
        "eos_token_ids": call.stopping.eos_token_ids,
        # Beams without a text are fed with it too.
        "pad_token_id": max(call.tokens.pad or 0, 0),
        "visible": call.prompt.visible() if plan.reads_history or _is_constrained(call) else None,
    }


def _is_constrained(call: Call) -> bool:
    return call.mode is GenerationMode.CONSTRAINED_BEAM_SEARCH


def searched(
    call: Call,
    state: Beams,
    loop: Callable[[Search], int],
    finalize: Callable[[int], BeamOutput],
) -> Tensor | GenerateOutput:
    """What `loop` finds; it returns the number of its steps."""
    config = call.config
    _check(call)
    logprobs = _logprobs(call, state)
    recorder = BeamRecorder(
        state,
        scores=call.wants_dict and bool(config.output_scores),
        logits=call.wants_dict and bool(config.output_logits),
        logprobs=logprobs,
        keep_order=call.wants_dict,
    )
    shared = None
    if call.streamer is not None:
        assert isinstance(state, BeamState)
        shared = SharedTokens(state, logprobs)
        call.streamer.put(call.prompt.input_ids.to("cpu", copy=True))
    report = EagerBeamReport(state, on_invalid=vars(config)["on_invalid"], shared=shared)
    with progress_bar(call.progress, call.lengths.max_new_tokens) as bar:
        monitor = BeamMonitor(max_time=call.stopping.max_time, cancel=call.cancel, streamer=call.streamer, progress=bar)
        arguments: SearchArguments = {
            "length_penalty": cast(float, config.length_penalty),
            "early_stopping": cast("bool | str", config.early_stopping),
            "stopping_criteria": candidate_criteria(monitor, recorder, call.criteria),
        }
        steps = loop(Search(arguments, recorder, report, monitor, shared))
        best = finalize(config.num_return_sequences or 1)
        generated = best.sequences[:, state.prompt_length :]
        pad = -1 if call.tokens.pad is None else call.tokens.pad
        if pad < 0:
            generated.masked_fill_(best.beam_indices < 0, pad)
        reasons = _finish_reasons(call, best, generated)
        of_tokens, of_best = (None, None) if logprobs is None else logprobs.of(best)
        length = int(_lengths(best)[0])
        monitor.finish(generated[0, :length], reasons[0], None if of_tokens is None else of_tokens[0, :length])
    if call.adapter.shows_cache:
        align_cache(call.adapter, state, best, steps)
    if not call.wants_dict:
        return best.sequences
    return _output(call, recorder, best, reasons, logprobs=of_tokens, top_logprobs=of_best)


def refuse_with(name: str, call: Call) -> None:
    if call.config.do_sample is not False:
        raise ValueError(f"`do_sample` must be False with `{name}`, got {call.settings.do_sample}")
    if call.streamer is not None:
        raise ValueError(f"`streamer` must be None with `{name}`: no token is certain before the end")
    if (call.config.num_beams or 1) < 2:
        raise ValueError(f"`num_beams` must be > 1 with `{name}`, got {call.config.num_beams}")


def _check(call: Call) -> None:
    config = call.config
    if call.streamer is not None and (call.batch_size, config.num_return_sequences or 1) != (1, 1):
        raise ValueError(
            f"`streamer` must get one prompt and one returned sequence with `num_beams` > 1, got {call.batch_size} and "
            f"{config.num_return_sequences}"
        )


def _lengths(best: BeamOutput) -> Tensor:
    """(rows,) tokens generated."""
    return (best.beam_indices >= 0).sum(1)


def _output(
    call: Call,
    recorder: BeamRecorder,
    best: BeamOutput,
    reasons: list[str],
    *,
    logprobs: Tensor | None,
    top_logprobs: TopLogprobs | None,
) -> GenerateOutput:
    adapter = call.adapter
    fields = adapter.recorded()
    assert recorder.orders is not None
    for name, entries in adapter.records.items():
        pairs, dims = zip(entries, recorder.orders, strict=True), adapter.record_dims.get(name)
        fields[name] = tuple(select_rows(entry, order, dims) for entry, order in pairs)
    return make_output(
        adapter.output_class(beams=True),
        sequences=best.sequences,
        sequences_scores=best.sequences_scores if call.config.output_scores else None,
        scores=recorder.scores,
        logits=recorder.logits,
        beam_indices=best.beam_indices,
        cache=adapter.cache,
        finish_reason=reasons,
        logprobs=logprobs,
        top_logprobs=top_logprobs,
        **fields,
    )


def _finish_reasons(call: Call, best: BeamOutput, generated: Tensor) -> list[str]:
    reasons = []
    for tokens, length in zip(generated.tolist(), _lengths(best).tolist(), strict=True):
        ended = length > 0 and tokens[length - 1] in (call.stopping.eos_token_ids or ())
        full = length == call.lengths.max_new_tokens
        reasons.append("eos" if ended else "length" if full else "stop")
    return reasons
