"""Beam search, beam sampling, and searches with constraints or in groups: from a resolved call to its output."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pygen import rng
from pygen.call.call import Call
from pygen.config.config import GenerationMode
from pygen.decode.beam_cache import align_cache
from pygen.decode.beam_logprobs import BeamLogprobs
from pygen.decode.beam_monitor import BeamMonitor, SharedTokens
from pygen.decode.constrained_beam import ConstrainedBinding
from pygen.decode.constraints import make_constraints
from pygen.decode.diverse_beam import DiverseBeamState, check_groups, diverse_beam
from pygen.decode.progress import progress_bar
from pygen.graph.eligibility import choose_slot, compile_options
from pygen.models.adapter import ModelAdapter
from pygen.models.rows import select_rows
from pygen.ops import BeamOutput, BeamState, beam_finalize
from pygen.ops._room import first_room
from pygen.outputs import GenerateOutput, make_output
from pygen.plan.beam_pipeline import BeamBinding
from pygen.plan.pipeline import Pipeline, check_knobs
from pygen.plan.plan import Plan, make_plan, num_top_logprobs

if TYPE_CHECKING:
    from pygen.graph.captures import Slot


def generate_with_beams(call: Call) -> Tensor | GenerateOutput:
    """Beam search (`num_beams` > 1), or beam sampling with `do_sample=True`: by captured steps where `choose_slot` says
    so, else eagerly."""
    if not isinstance(call.settings.do_sample, bool | None):
        raise ValueError("`do_sample` must be one bool for all rows with `num_beams` > 1, got several")
    check_groups(call.num_copies, 1, call.config.diversity_penalty, call.config.do_sample)
    plan = dataclasses.replace(make_plan(call), noise=_noise(call))
    slot = choose_slot(call, plan)
    if slot is not None:
        with slot.taken():
            return _generate_captured(call, plan, slot)
    state = BeamState.create(*_sizes(call), **_texts(call, plan), room=_room(call))

    def run(monitor: BeamMonitor) -> int:
        return _beam(call, plan, state, BeamBinding(plan, state, _search(call, monitor)), monitor)

    return _searched(call, state, run, lambda count: beam_finalize(state, count))


def _generate_captured(call: Call, plan: Plan, slot: Slot) -> Tensor | GenerateOutput:
    from pygen.graph.decode import beam_captured, dynamic_copy
    from pygen.graph.late_beam_monitor import LateBeamMonitor
    from pygen.models.transformers import TransformersAdapter

    adapter = call.adapter
    assert isinstance(adapter, TransformersAdapter)
    state = BeamState.create(*_sizes(call), **_texts(call, plan))

    def run(monitor: BeamMonitor) -> int:
        assert isinstance(monitor, LateBeamMonitor)
        search = _search(call, monitor)
        check_knobs(plan, BeamBinding(plan, state, search), state.rows, state.token_ids.device)
        call.start(cache=slot.cache)
        steps = beam_captured(
            adapter,
            state,
            plan,
            search,
            monitor,
            slot,
            max_new_tokens=call.lengths.max_new_tokens,
            compile_options=compile_options(call.config),
            must_capture=call.runtime == "graph",
        )
        if call.wants_dict:
            # The slot's own is the next call's.
            adapter.replace_cache(dynamic_copy(slot.cache, call.model.config))
        return steps

    return _searched(call, state, run, lambda count: beam_finalize(state, count), LateBeamMonitor)


def generate_with_constraints(call: Call) -> Tensor | GenerateOutput:
    """Constrained beam search: every hypothesis holds the words of `force_words_ids` and meets `constraints`."""
    _refuse_with("force_words_ids" if call.config.force_words_ids is not None else "constraints", call)
    plan = make_plan(call)
    constraints = make_constraints(call.config.constraints, call.config.force_words_ids)
    state = BeamState.create(*_sizes(call), **_texts(call, plan), room=_room(call))

    def run(monitor: BeamMonitor) -> int:
        binding = ConstrainedBinding(plan, state, constraints, **_search(call, monitor))
        return _beam(call, plan, state, binding, monitor)

    return _searched(call, state, run, lambda count: beam_finalize(state, count))


def generate_with_groups(call: Call) -> Tensor | GenerateOutput:
    """Diverse beam search: `num_beam_groups` groups of beams that avoid each other's tokens."""
    config = call.config
    groups = config.num_beam_groups or 1
    check_groups(call.num_copies, groups, config.diversity_penalty, config.do_sample)
    _refuse_with("num_beam_groups", call)
    plan = make_plan(dataclasses.replace(call, num_copies=call.num_copies // groups))
    # Beams that no memory holds are refused here, and not after very many groups.
    torch.empty((call.rows, call.prompt.input_ids.shape[1] + 1), dtype=torch.int64)
    state = DiverseBeamState.create(*_sizes(call), groups, **_texts(call, plan), room=_room(call))

    def run(monitor: BeamMonitor) -> int:
        search = _search(call, monitor)
        for group in state.groups:
            check_knobs(plan, BeamBinding(plan, group, search), group.rows, group.token_ids.device)
        call.start()
        return diverse_beam(
            call.adapter,
            state,
            plan,
            search,
            monitor,
            diversity_penalty=config.diversity_penalty or 0.0,
            max_new_tokens=call.lengths.max_new_tokens,
        )

    return _searched(call, state, run, state.finalize)


def _beam(call: Call, plan: Plan, state: BeamState, binding: BeamBinding, monitor: BeamMonitor) -> int:
    # Before the model runs.
    check_knobs(plan, binding, state.rows, state.token_ids.device)
    call.start()
    return beam(call.adapter, state, plan, binding, monitor, max_new_tokens=call.lengths.max_new_tokens)


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


def _logprobs(call: Call, state: BeamState | DiverseBeamState) -> BeamLogprobs | None:
    num_top = num_top_logprobs(call.config)
    return None if num_top is None else BeamLogprobs(state, _room(call), num_top)


def _stream(call: Call, state: BeamState | DiverseBeamState, logprobs: BeamLogprobs | None) -> SharedTokens | None:
    if call.streamer is None:
        return None
    assert isinstance(state, BeamState)
    return SharedTokens(state, call.streamer, logprobs)


def _sizes(call: Call) -> tuple[Tensor, int, int]:
    return call.prompt.input_ids, call.lengths.max_new_tokens, call.num_copies


def _room(call: Call) -> int:
    return first_room(call.lengths.max_new_tokens)


def _texts(call: Call, plan: Plan) -> dict[str, Any]:
    """Arguments of a state about how texts begin and end."""
    return {
        "eos_token_ids": call.stopping.eos_token_ids,
        # Beams without a text are fed with it too.
        "pad_token_id": max(call.tokens.pad or 0, 0),
        "visible": call.prompt.visible() if plan.reads_history or _is_constrained(call) else None,
    }


def _is_constrained(call: Call) -> bool:
    return call.mode is GenerationMode.CONSTRAINED_BEAM_SEARCH


def _search(call: Call, monitor: BeamMonitor) -> dict[str, Any]:
    """Arguments of `beam_step` about the search."""
    return {
        "length_penalty": call.config.length_penalty,
        "early_stopping": call.config.early_stopping,
        "stopping_criteria": monitor.criteria,
    }


def _searched(
    call: Call,
    state: BeamState | DiverseBeamState,
    run: Callable[[BeamMonitor], int],
    finalize: Callable[[int], BeamOutput],
    monitor_class: type[BeamMonitor] = BeamMonitor,
) -> Tensor | GenerateOutput:
    """What `run` finds; it returns the number of its steps."""
    config = call.config
    _check(call)
    logprobs = _logprobs(call, state)
    if call.streamer is not None:
        call.streamer.put(call.prompt.input_ids.to("cpu", copy=True))
    with progress_bar(call.progress, call.lengths.max_new_tokens) as bar:
        monitor = monitor_class(
            state,
            criteria=call.criteria,
            on_invalid=vars(config)["on_invalid"],
            max_time=call.stopping.max_time,
            cancel=call.cancel,
            stream=_stream(call, state, logprobs),
            progress=bar,
            scores=call.wants_dict and bool(config.output_scores),
            logits=call.wants_dict and bool(config.output_logits),
            logprobs=logprobs,
            keep_order=call.wants_dict,
        )
        steps = run(monitor)
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
    return _output(call, monitor, best, reasons, logprobs=of_tokens, top_logprobs=of_best)


def _refuse_with(name: str, call: Call) -> None:
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


def _noise(call: Call) -> dict[str, Any]:
    """Arguments of `beam_step`: with seeds, the noise of a beam depends on its prompt's seed and its rank alone."""
    config = call.config
    if config.do_sample is not True:
        return {}
    seed = getattr(config, "seed", None)
    if seed is None:
        return {"rng": "torch", "generator": call.generator, "sort_draws": call.adapter.sorts_drawn_beams}
    if call.generator is not None:
        raise ValueError("`seed` and `generator` exclude each other")
    if isinstance(seed, int):
        seed = [rng.row_seed(seed, prompt) for prompt in range(call.batch_size)]
    if len(seed) != call.batch_size:
        raise ValueError(f"`seed` must be an int or one per prompt ({call.batch_size}), got {len(seed)}")
    of_beams = torch.cat([rng.row_seeds(of_prompt, call.num_copies) for of_prompt in seed])
    return {"rng": "philox", "seed": of_beams.to(call.prompt.input_ids.device)}


def _lengths(best: BeamOutput) -> Tensor:
    """(rows,) tokens generated."""
    return (best.beam_indices >= 0).sum(1)


def _output(
    call: Call,
    monitor: BeamMonitor,
    best: BeamOutput,
    reasons: list[str],
    **logprobs: Any,
) -> GenerateOutput:
    adapter = call.adapter
    fields = adapter.recorded()
    assert monitor.orders is not None
    for name, entries in adapter.records.items():
        pairs, dims = zip(entries, monitor.orders, strict=True), adapter.record_dims.get(name)
        fields[name] = tuple(select_rows(entry, order, dims) for entry, order in pairs)
    return make_output(
        adapter.output_class(beams=True),
        sequences=best.sequences,
        sequences_scores=best.sequences_scores if call.config.output_scores else None,
        scores=monitor.scores,
        logits=monitor.logits,
        beam_indices=best.beam_indices,
        cache=adapter.cache,
        finish_reason=reasons,
        **logprobs,
        **fields,
    )


def _finish_reasons(call: Call, best: BeamOutput, generated: Tensor) -> list[str]:
    reasons = []
    for tokens, length in zip(generated.tolist(), _lengths(best).tolist(), strict=True):
        ended = length > 0 and tokens[length - 1] in (call.stopping.eos_token_ids or ())
        full = length == call.lengths.max_new_tokens
        reasons.append("eos" if ended else "length" if full else "stop")
    return reasons
