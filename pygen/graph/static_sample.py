"""The draw of a captured step: `sample` over a static state and static knobs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pygen.graph.mailbox import Received, StepMessage
from pygen.graph.static_knobs import NO_TOKEN, KnobForm, fill_prompts, generator_words, no_tokens, rounded_up
from pygen.knobs import FILTERS
from pygen.ops import DecodeState, SampleOutput, TokenLogprobs, prepare_sample, token_logprobs
from pygen.ops._bookkeeping import end_invalid_rows
from pygen.ops._noise import Noise
from pygen.ops._shaping import Shaping
from pygen.ops.sample import PreparedSample

# Lists of EOS ids are rounded up to whole numbers of these, with ids that mean nothing.
_EOS_IDS = 8


@dataclass(frozen=True)
class SampleForm:
    """What is fixed when a draw is captured; calls of equal form share it.

    num_logprobs, num_raw_logprobs: see `Plan`. kept_width: kept ids that a row has memory for; 0 reports none.
    draws: some row is not greedy.
    """

    knobs: KnobForm
    num_eos: int
    num_logprobs: int
    num_raw_logprobs: int
    kept_width: int
    draws: bool
    rng: str
    pad_token_id: int
    on_invalid: str


def form_of(
    draws: Sequence[PreparedSample],
    state: DecodeState,
    *,
    num_logprobs: int,
    num_raw_logprobs: int = 0,
    on_invalid: str,
) -> SampleForm:
    """`draws`: the call's ops, one per segment of its steps. state: what they are bound to."""
    noise, kept = draws[0].noise, draws[0].out.kept
    assert noise is not None
    return SampleForm(
        knobs=KnobForm.of([draw.shaping for draw in draws], noise.draws),
        num_eos=0 if state.eos_token_ids is None else rounded_up(state.eos_token_ids.numel(), _EOS_IDS),
        num_logprobs=num_logprobs,
        num_raw_logprobs=num_raw_logprobs,
        kept_width=0 if kept is None else kept.token_ids.shape[1],
        draws=noise.draws,
        rng=noise.rng if noise.draws else "philox",
        # The model may read a pad token in the overshoot, so it must be an id; a negative one is never returned.
        pad_token_id=max(state.pad_token_id, 0),
        on_invalid=on_invalid,
    )


class StaticSample:
    """A static state of `capacity` columns for prompts and as many for tokens, and the op bound to it.

    state, message: what the op writes; `message.output` is what it returns.
    """

    STAYS_AT_THE_END = False

    def __init__(self, example: Tensor, form: SampleForm, capacity: int) -> None:
        """`example`: logits (rows, vocab_size) like those that will come."""
        device, rows = example.device, form.knobs.rows
        self.form, self.capacity = form, capacity
        self.message = StepMessage(rows, form.num_logprobs or form.num_raw_logprobs, device, form.kept_width)
        output = self.message.output
        self._raw_logprobs: TokenLogprobs | None = None
        if form.num_raw_logprobs > 0:
            assert output.logprobs is not None
            self._raw_logprobs = TokenLogprobs(output.logprobs, output.top_logprobs, torch.empty_like(output.status))
            output = output._replace(logprobs=None, top_logprobs=None)
        torch_noise = form.draws and form.rng == "torch"
        self.state = DecodeState(
            token_ids=torch.zeros((rows, 2 * capacity), dtype=torch.int64, device=device),
            history=torch.full((rows, 2 * capacity), NO_TOKEN, dtype=torch.int64, device=device),
            prompt_length=capacity,
            num_generated=self.message.num_generated,
            finished=self.message.finished,
            unfinished=self.message.unfinished,
            eos_token_ids=no_tokens(form.num_eos, device) if form.num_eos else None,
            pad_token_id=form.pad_token_id,
            steps=self.message.steps,
            generator_state=generator_words(device) if torch_noise else None,
        )
        self._op = prepare_sample(
            example,
            **self._knobs(device),
            do_sample=form.draws,
            rng=form.rng,
            seed=[0] * rows if form.draws and not torch_noise else None,
            logprobs=form.num_logprobs,
            state=self.state,
            out=output,
            output_kept=form.kept_width > 0,
            kept_limit=max(form.kept_width, 1),
        )

    def _knobs(self, device: torch.device) -> dict[str, Any]:
        knobs = self.form.knobs.arguments(device)
        if self.form.kept_width > 0:
            # The op keeps sets only where something acts. `set_knobs` replaces these values.
            for knob in FILTERS:
                if knob.name in knobs:
                    knobs[knob.name].fill_(1 if knob.type is int else 0.5)
            if "temperature" in knobs:
                knobs["temperature"].zero_()
        return knobs

    def __call__(self, logits: Tensor) -> SampleOutput:
        output = self._op(logits)
        if self.form.on_invalid == "eos":
            end_invalid_rows(self.state, output.token_ids, output.status, 0, logits.shape[1])
        if self._raw_logprobs is not None:
            token_logprobs(logits, output.token_ids, top=self.form.num_raw_logprobs, out=self._raw_logprobs)
        return self.message.output

    def begin(self, state: DecodeState, noise: Noise) -> None:
        """Takes over the prompts, the ids that end rows and the seeds of a call. Knobs come with `set_knobs`."""
        own = self.state
        fill_prompts(own, state, self.capacity)
        own.num_generated.zero_()
        own.finished.zero_()
        own.unfinished.fill_(own.rows)
        assert own.steps is not None
        own.steps.zero_()
        if own.eos_token_ids is not None and state.eos_token_ids is not None:
            own.eos_token_ids.fill_(NO_TOKEN)[: state.eos_token_ids.numel()] = state.eos_token_ids
        if own.generator_state is None and self.form.draws:
            assert self._op.noise is not None
            self._op.noise.seeds.copy_(noise.seeds)

    def set_knobs(self, shaping: Shaping) -> None:
        """Makes the steps that are queued from here on act as `shaping` says."""
        self.form.knobs.fill(self._op.shaping, shaping)

    def finish(self, state: DecodeState, steps: int, last: Received | None) -> None:
        """Writes what the first `steps` steps did into the call's state; later steps leave no trace.

        last: the message of the last of them, None without a step.
        """
        tokens = self.state.token_ids[:, self.capacity : self.capacity + steps]
        state.token_ids[:, state.prompt_length : state.prompt_length + steps] = tokens
        if last is not None:
            state.num_generated.copy_(last.num_generated, non_blocking=True)
            state.finished.copy_(last.finished, non_blocking=True)
            state.unfinished.copy_(last.unfinished, non_blocking=True)

    def column(self, step: int) -> Tensor:
        """(rows,): a view of the tokens of `step`."""
        return self.state.column(step)
