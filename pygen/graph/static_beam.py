"""The choice of a captured step with beams: `beam_step` over a static state and static knobs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pygen.graph.mailbox import StepMessage
from pygen.graph.static_cache import EncoderDecoderStaticCache, StaticCache
from pygen.graph.static_knobs import NO_TOKEN, KnobForm, fill_prompts, generator_words
from pygen.ops import BeamState, BeamStepOutput, PreparedProcessLogits, prepare_beam_step, prepare_process_logits
from pygen.ops._shaping import Shaping
from pygen.ops.beam_step import PreparedBeamStep
from pygen.plan.beam_logprobs import BeamLogprobs

# What a search changes besides its texts.
_SEARCH = (
    "slots", "shared", "running_scores", "finished_scores", "finished", "finished_steps", "finished_tokens",
    "finished_parents", "open", "unfinished",
)  # fmt: skip


@dataclass(frozen=True)
class BeamForm:
    """What is fixed when a step with beams is captured; calls of equal form share it.

    num_eos: exactly, since it decides how many candidates are drawn. stops_when_full: `early_stopping` is True.
    top_logprobs: None keeps no log-probabilities, 0 those of the chosen tokens, n > 0 also the n best.
    raw_logprobs: they are those of the model's logits.
    """

    knobs: KnobForm
    num_beams: int
    num_eos: int
    draws: bool
    rng: str
    pad_token_id: int
    stops_when_full: bool
    sorts_draws: bool
    top_logprobs: int | None
    raw_logprobs: bool


def form_of(
    ops: Sequence[PreparedBeamStep], state: BeamState, *, early_stopping: bool | str, logprobs: BeamLogprobs | None
) -> BeamForm:
    """`ops`: the call's, one per segment of its steps. state: what they are bound to. logprobs: the call's; None keeps
    none."""
    noise = ops[0].noise
    assert noise is not None
    return BeamForm(
        knobs=KnobForm.of([op.shaping for op in ops], noise.draws),
        num_beams=state.num_beams,
        num_eos=0 if state.eos_token_ids is None else state.eos_token_ids.numel(),
        draws=noise.draws,
        rng=noise.rng if noise.draws else "philox",
        # A dead beam feeds it to the model.
        pad_token_id=max(state.pad_token_id, 0),
        stops_when_full=early_stopping is True,
        sorts_draws=ops[0].sorts_draws,
        top_logprobs=None if logprobs is None else logprobs.num_top,
        raw_logprobs=logprobs is not None and logprobs.raw,
    )


class StaticBeam:
    """A static state of `capacity` columns for prompts and as many for tokens, and the op bound to it. A call moves the
    rows of `cache`, too.

    state, message: what the op writes; `message.output` has the tokens that rows feed next, and their status.
    """

    # A step after the last changes nothing, and draws nothing.
    STAYS_AT_THE_END = True

    def __init__(
        self, example: Tensor, form: BeamForm, cache: StaticCache | EncoderDecoderStaticCache, capacity: int
    ) -> None:
        """`example`: logits (rows, vocab_size) like those that will come."""
        device, rows = example.device, form.knobs.rows
        self.form, self.capacity = form, capacity
        self._cache = cache
        self.message = StepMessage(rows, 0, device)
        torch_noise = form.draws and form.rng == "torch"
        prompts = torch.zeros((rows // form.num_beams, capacity), dtype=torch.int64, device=device)
        self.state = BeamState.create(
            prompts,
            capacity,
            form.num_beams,
            eos_token_ids=[NO_TOKEN] * form.num_eos,
            pad_token_id=form.pad_token_id,
            visible=torch.zeros_like(prompts),
        )
        self.state.steps, self.state.unfinished = self.message.steps, self.message.unfinished
        self.state.limit = torch.full((1,), capacity, dtype=torch.int64, device=device)
        self.state.generator_state = generator_words(device) if torch_noise else None
        self._op = prepare_beam_step(
            example,
            self.state,
            **form.knobs.arguments(device),
            do_sample=form.draws,
            rng=form.rng,
            seed=[0] * rows if form.draws and not torch_noise else None,
            early_stopping=form.stops_when_full,
            sort_draws=form.sorts_draws,
            out=BeamStepOutput(
                self.message.output.token_ids,
                torch.arange(rows, device=device),
                torch.zeros(rows, dtype=torch.int64, device=device),
                self.message.output.status,
            ),
        )

        # One step more than there can be: what comes after the end is written behind the last.
        self.logprobs: BeamLogprobs | None = None
        if form.top_logprobs is not None:
            self.logprobs = BeamLogprobs(self.state, capacity + 1, form.top_logprobs, raw=form.raw_logprobs)
        self._process: PreparedProcessLogits | None = None
        if form.top_logprobs is not None and form.knobs.act and not form.raw_logprobs:
            log_probs = torch.empty_like(example, dtype=torch.float32)
            knobs = form.knobs.arguments(device)
            self._process = prepare_process_logits(log_probs, **knobs, do_sample=form.draws, state=self.state)

    def __call__(self, logits: Tensor) -> BeamStepOutput:
        output = self._op(logits) if self.logprobs is None else self._observed(logits, self.logprobs)
        self._cache.reorder_suffix(output.source_rows, output.shared, None)
        return output

    def _observed(self, logits: Tensor, logprobs: BeamLogprobs) -> BeamStepOutput:
        assert self.state.steps is not None
        step = self.state.steps[:1].clone()
        log_probs = logits if self._process is None else self._process(torch.log_softmax(logits.float(), dim=-1))
        logprobs.see(log_probs)
        output = self._op(logits)
        logprobs.add(step, self.state.chosen(step.clamp(max=self.capacity - 1)))
        return output

    def begin(self, state: BeamState, op: PreparedBeamStep) -> None:
        """Takes over a fresh state with its prompts and limits, and the seeds and length penalty of the call's `op`.
        Knobs come with `set_knobs`."""
        own = self.state
        fill_prompts(own, state, self.capacity)
        for name in _SEARCH:
            getattr(own, name).copy_(getattr(state, name))
        assert own.steps is not None
        own.steps.zero_()
        self.stop_after(state.max_new_tokens)
        if own.eos_token_ids is not None and state.eos_token_ids is not None:
            own.eos_token_ids.copy_(state.eos_token_ids)
        self._op.normalisers[:, : state.max_new_tokens] = op.normalisers
        if own.generator_state is None and self.form.draws:
            assert self._op.noise is not None and op.noise is not None
            self._op.noise.seeds.copy_(op.noise.seeds)

    def set_knobs(self, shaping: Shaping) -> None:
        """Makes the steps that are queued from here on act as `shaping` says."""
        for op in (self._op, self._process):
            if op is not None:
                self.form.knobs.fill(op.shaping, shaping)

    def stop_after(self, steps: int) -> None:
        """Ends every continuation in the last of `steps` steps, which is not queued yet."""
        assert self.state.limit is not None
        self.state.limit.fill_(steps)

    def finish(self, state: BeamState, steps: int) -> None:
        """Writes what the first `steps` steps did into the call's state; a search that is over does not change."""
        own, length = self.state, state.prompt_length
        for name in _SEARCH:
            getattr(state, name).copy_(getattr(own, name))
        state.token_ids[:, length : length + steps] = own.token_ids[:, self.capacity : self.capacity + steps]
        state.step_tokens[:steps] = own.step_tokens[:steps]
        state.step_parents[:steps] = own.step_parents[:steps]
