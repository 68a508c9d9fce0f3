"""Runs diverse and constrained beam search over a model, from settings to hypotheses."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pygen.call.call import Call
from pygen.decode.beam import BeamChooser, PipelineChooser, beam
from pygen.decode.beam_monitor import BeamMonitor
from pygen.decode.beam_observer import BeamRecorder, EagerBeamReport, candidate_criteria
from pygen.decode.constrained_beam import ConstrainedBinding
from pygen.decode.constraints import Constraint, make_constraints
from pygen.decode.diverse_beam import DiverseBeamState, GroupsChooser
from pygen.models.adapter import adapt
from pygen.ops import BeamOutput, BeamState, beam_finalize
from pygen.plan.beam_pipeline import SearchArguments
from pygen.plan.plan import make_plan
from tests.generate.models import TableModel
from tests.generate.plans import make_call

TABLE_SIZE = 23


def table_model(seed: int) -> TableModel:
    """Returns a model with random scores, looked up by the last token."""
    return TableModel(torch.randn(TABLE_SIZE, TABLE_SIZE, generator=torch.Generator().manual_seed(seed)) * 2)


class PlacedTable(TableModel):
    """A table whose scores also depend on the position, so that the same steps in another order score differently."""

    places: Tensor

    def __init__(self, seed: int) -> None:
        super().__init__(table_model(seed).table)
        self.register_buffer("places", torch.randn(64, TABLE_SIZE, generator=torch.Generator().manual_seed(seed)))

    def forward(self, input_ids: Tensor) -> Tensor:
        return super().forward(input_ids) + self.places[: input_ids.shape[1]]


class Found(NamedTuple):
    """The hypotheses, the number of steps, and the records."""

    sequences: Tensor
    sequences_scores: Tensor
    beam_indices: Tensor
    steps: int
    scores: Any
    logits: Any


@torch.no_grad()
def diverse(
    model: Any, prompts: Tensor, *, mask: Tensor | None = None, criteria: Any = (), cancel: Any = None, **asked: Any
) -> Found:
    asked = {"output_scores": True, "return_dict_in_generate": True, **asked}
    call = _call(model, prompts, mask, asked)
    config = call.config
    groups = config.num_beam_groups or 1
    plan = make_plan(dataclasses.replace(call, num_copies=call.num_copies // groups))
    state = DiverseBeamState.create(
        prompts, call.lengths.max_new_tokens, call.num_copies, groups,
        eos_token_ids=call.tokens.eos, pad_token_id=call.tokens.pad or 0, visible=call.prompt.visible(),
    )  # fmt: skip
    monitor, recorder = BeamMonitor(cancel=cancel), BeamRecorder(state, scores=True, logits=True)
    search = _search(call, candidate_criteria(monitor, recorder, criteria))
    chooser = GroupsChooser(plan, state, search, recorder, diversity_penalty=config.diversity_penalty or 0.0)
    steps = _beam(call, state, chooser, monitor)
    return _found(state.finalize(config.num_return_sequences or 1), steps, recorder)


@torch.no_grad()
def constrained(
    model: Any,
    prompts: Tensor,
    *,
    mask: Tensor | None = None,
    criteria: Any = (),
    constraints: list[Constraint] | None = None,
    force_words_ids: Any = None,
    **asked: Any,
) -> Found:
    asked = {"output_scores": True, "return_dict_in_generate": True, **asked}
    call = _call(model, prompts, mask, asked)
    state = BeamState.create(
        prompts, call.lengths.max_new_tokens, call.num_copies,
        eos_token_ids=call.tokens.eos, pad_token_id=call.tokens.pad or 0, visible=call.prompt.visible(),
    )  # fmt: skip
    monitor, recorder = BeamMonitor(), BeamRecorder(state, scores=True, logits=True)
    plan = make_plan(call)
    made = make_constraints(constraints, force_words_ids)
    search = _search(call, candidate_criteria(monitor, recorder, criteria))
    binding = ConstrainedBinding(plan, state, made, **search)
    steps = _beam(call, state, PipelineChooser(plan, state, binding, recorder), monitor)
    return _found(beam_finalize(state, call.config.num_return_sequences or 1), steps, recorder)


def _call(model: Any, prompts: Tensor, mask: Tensor | None, asked: dict[str, Any]) -> Call:
    call = make_call(prompts, mask=mask, **asked)
    adapter = adapt(model)
    inputs = {} if mask is None else {"attention_mask": mask}
    prompt = adapter.prompt(prompts, inputs, call.config, call.tokens)
    adapter.start(prompt, mode=call.mode, num_copies=call.num_copies, max_new_tokens=call.lengths.max_new_tokens)
    return dataclasses.replace(call, adapter=adapter, prompt=prompt)


def _search(call: Call, criteria: Any) -> SearchArguments:
    config: Any = call.config
    return {
        "length_penalty": config.length_penalty,
        "early_stopping": config.early_stopping,
        "stopping_criteria": criteria,
    }


def _beam(call: Call, state: Any, chooser: BeamChooser, monitor: BeamMonitor) -> int:
    report = EagerBeamReport(state)
    return beam(call.adapter, state, chooser, report, monitor, max_new_tokens=call.lengths.max_new_tokens)


def _found(output: BeamOutput, steps: int, recorder: BeamRecorder) -> Found:
    return Found(*output, steps, recorder.scores, recorder.logits)
