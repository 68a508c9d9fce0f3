"""Beam search and beam sampling: from a resolved call to its output."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from pygen import rng
from pygen.beam_pipeline import BeamBinding
from pygen.call import Call
from pygen.loops.beam import beam
from pygen.loops.beam_monitor import BeamMonitor
from pygen.loops.beam_state import BeamState
from pygen.ops import BeamOutput, beam_finalize
from pygen.outputs import GenerateBeamDecoderOnlyOutput, GenerateBeamEncoderDecoderOutput, GenerateOutput
from pygen.pipeline import check_knobs
from pygen.plan import make_plan
from pygen.progress import progress_bar


def generate_with_beams(call: Call) -> Tensor | GenerateOutput:
    """Beam search (`num_beams` > 1), or beam sampling with `do_sample=True`."""
    config, max_new_tokens = call.config, call.lengths.max_new_tokens
    _check(call)
    plan = dataclasses.replace(make_plan(call), noise=_noise(call))
    prompts = call.prompt.input_ids
    visible = call.prompt.visible() if plan.reads_history else None
    state = BeamState.create(
        prompts,
        max_new_tokens,
        call.num_copies,
        eos_token_ids=call.stopping.eos_token_ids,
        pad_token_id=call.tokens.pad or 0,
        visible=visible,
    )

    if call.streamer is not None:
        call.streamer.put(prompts.to("cpu", copy=True))
    with progress_bar(call.progress, max_new_tokens) as bar:
        monitor = BeamMonitor(
            state,
            criteria=call.criteria,
            on_invalid=vars(config)["on_invalid"],
            max_time=call.stopping.max_time,
            cancel=call.cancel,
            streamer=call.streamer,
            progress=bar,
            scores=call.wants_dict and bool(config.output_scores),
            logits=call.wants_dict and bool(config.output_logits),
            keep_order=call.wants_dict,
        )
        search = {
            "length_penalty": config.length_penalty,
            "early_stopping": config.early_stopping,
            "stopping_criteria": monitor.criteria,
        }
        binding = BeamBinding(plan, state, search)
        # Before the model runs.
        check_knobs(plan, binding, state.rows, prompts.device)
        call.start()
        steps = beam(call.adapter, state, plan, binding, monitor, max_new_tokens=max_new_tokens)
        best = beam_finalize(state, config.num_return_sequences or 1)
        generated = best.sequences[:, state.prompt_length :]
        if call.tokens.pad is None:
            generated.masked_fill_(best.beam_indices < 0, -1)
        reasons = _finish_reasons(call, best, generated)
        monitor.finish(generated[0, : _lengths(best)[0]], reasons[0])
    return _output(call, state, monitor, best, reasons, steps) if call.wants_dict else best.sequences


def _check(call: Call) -> None:
    config = call.config
    if not isinstance(call.settings.do_sample, bool | None):
        raise ValueError("`do_sample` must be one bool for all rows with `num_beams` > 1, got several")
    if getattr(config, "output_logprobs", None):
        raise ValueError(
            "`output_logprobs` must be unset with `num_beams` > 1; `compute_transition_scores` tells the tokens' scores"
        )
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
        return {"rng": "torch", "generator": call.generator}
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
    call: Call, state: BeamState, monitor: BeamMonitor, best: BeamOutput, reasons: list[str], steps: int
) -> GenerateOutput:
    adapter = call.adapter
    fields = adapter.recorded()
    assert monitor.orders is not None
    for name, entries in adapter.records.items():
        pairs = zip(entries, monitor.orders, strict=True)
        fields[name] = tuple(_by_beam(entry, order) for entry, order in pairs)
    if fields.get("past_key_values") is not None:
        adapter.reorder(state.slots.flatten(), torch.zeros_like(state.slots).flatten(), steps - 1)
    output = GenerateBeamEncoderDecoderOutput if adapter.is_encoder_decoder else GenerateBeamDecoderOnlyOutput
    return output(
        sequences=best.sequences,
        sequences_scores=best.sequences_scores if call.config.output_scores else None,
        scores=monitor.scores,
        logits=monitor.logits,
        beam_indices=best.beam_indices,
        finish_reason=reasons,
        **fields,
    )


def _by_beam(record: Any, order: Tensor) -> Any:
    """A record of a forward, nested tuples of tensors by row, in the order of the beams."""
    if isinstance(record, tuple):
        return tuple(_by_beam(entry, order) for entry in record)
    return record[order] if isinstance(record, Tensor) else record


def _finish_reasons(call: Call, best: BeamOutput, generated: Tensor) -> list[str]:
    reasons = []
    for tokens, length in zip(generated.tolist(), _lengths(best).tolist(), strict=True):
        ended = length > 0 and tokens[length - 1] in (call.stopping.eos_token_ids or ())
        full = length == call.lengths.max_new_tokens
        reasons.append("eos" if ended else "length" if full else "stop")
    return reasons
