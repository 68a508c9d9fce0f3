"""The draw of a captured step: `sample` over knobs that stay where they are, filled anew for every call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pygen.loops.state import DecodeState
from pygen.ops import RowStatus, SampleOutput, prepare_sample
from pygen.ops._noise import Noise
from pygen.ops._shaping import Shaping
from pygen.ops.sample import PreparedSample
from pygen.runtime.stop_poll import StepMessage

# Knobs of one value a row, with the one that does nothing.
_NEUTRAL: dict[str, float | int] = {
    "temperature": 1.0,
    "top_k": 0,
    "top_p": 1.0,
    "min_p": 0.0,
    "typical_p": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "top_h": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "no_repeat_ngram_size": 0,
    "min_tokens_to_keep": 1,
}
# Lists of ids are rounded up to whole numbers of these, with ids that mean nothing, so that calls may share a capture.
_EOS_IDS = 8
_BANNED_IDS = 32
_NO_TOKEN = -1


@dataclass(frozen=True)
class SampleForm:
    """What is fixed when a draw is captured; calls of equal form share it.

    knobs: the names of those that act on some step; a call gives them any values. draws: some row is not greedy.
    """

    rows: int
    vocab_size: int
    dtype: torch.dtype
    knobs: tuple[str, ...]
    has_bias: bool
    num_banned: int
    num_eos: int
    num_logprobs: int
    draws: bool
    rng: str
    pad_token_id: int
    on_invalid: str


def form_of(draws: Sequence[PreparedSample], state: DecodeState, *, num_logprobs: int, on_invalid: str) -> SampleForm:
    """`draws`: the call's ops, one per segment of its steps. state: what they are bound to."""
    shapings = [draw.shaping for draw in draws]
    first, noise = shapings[0], draws[0].noise
    assert noise is not None
    banned = [0 if shaping.suppress is None else shaping.suppress.numel() for shaping in shapings]
    return SampleForm(
        rows=first.like.rows,
        vocab_size=first.like.vocab_size,
        dtype=first.dtype,
        knobs=tuple(name for name in _NEUTRAL if noise.draws or name != "temperature" if _acts(name, shapings)),
        has_bias=any(shaping.bias is not None for shaping in shapings),
        num_banned=_rounded_up(max(banned), _BANNED_IDS),
        num_eos=0 if state.eos_token_ids is None else _rounded_up(state.eos_token_ids.numel(), _EOS_IDS),
        num_logprobs=num_logprobs,
        draws=noise.draws,
        rng=noise.rng if noise.draws else "philox",
        # The model may read what follows an end in the overshoot; negative ids stand for "never returned".
        pad_token_id=max(state.pad_token_id, 0),
        on_invalid=on_invalid,
    )


def _acts(name: str, shapings: Sequence[Shaping]) -> bool:
    values = [getattr(shaping, name) for shaping in shapings]
    return any(isinstance(value, Tensor) or value != _NEUTRAL[name] for value in values)


def _rounded_up(count: int, step: int) -> int:
    return -(-count // step) * step


class StaticSample:
    """A state of its own, and the op bound to it.

    The prompts of a call stand at the right end of the first `capacity` columns, behind ids that are outside every
    vocabulary; so what a step sees of them does not depend on their length.

    state, message: what the op writes; `message.output` is what it returns.
    """

    def __init__(self, example: Tensor, form: SampleForm, capacity: int) -> None:
        """`example`: logits (rows, vocab_size) like those that will come."""
        device = example.device
        self.form, self.capacity = form, capacity
        self.message = StepMessage(form.rows, form.num_logprobs, device)
        torch_noise = form.draws and form.rng == "torch"
        self.state = DecodeState(
            token_ids=torch.zeros((form.rows, 2 * capacity), dtype=torch.int64, device=device),
            history=torch.full((form.rows, 2 * capacity), _NO_TOKEN, dtype=torch.int64, device=device),
            prompt_length=capacity,
            num_generated=torch.zeros(form.rows, dtype=torch.int64, device=device),
            finished=torch.zeros(form.rows, dtype=torch.bool, device=device),
            unfinished=self.message.unfinished,
            eos_token_ids=_ids(form.num_eos, device) if form.num_eos else None,
            pad_token_id=form.pad_token_id,
            steps=self.message.steps,
            generator_state=_generator_words(device) if torch_noise else None,
        )
        knobs: dict[str, Any] = {name: _per_row(name, form.rows, device) for name in form.knobs}
        self._op = prepare_sample(
            example,
            **knobs,
            bias=torch.zeros(form.vocab_size, device=device) if form.has_bias else None,
            suppress=_ids(form.num_banned, device) if form.num_banned else None,
            do_sample=form.draws,
            rng=form.rng,
            seed=[0] * form.rows if form.draws and not torch_noise else None,
            logprobs=form.num_logprobs,
            state=self.state,
            out=self.message.output,
        )

    def __call__(self, logits: Tensor) -> SampleOutput:
        output = self._op(logits)
        if self.form.on_invalid == "eos":
            self._end_invalid_rows(output)
        return output

    def begin(self, state: DecodeState, noise: Noise) -> None:
        """Takes over the prompts, the ids that end rows and the seeds of a call. Knobs come with `set_knobs`."""
        own, length, end = self.state, state.prompt_length, self.capacity
        own.token_ids[:, end - length : end] = state.token_ids[:, :length]
        own.history.fill_(_NO_TOKEN)
        own.history[:, end - length : end] = state.history[:, :length]
        own.num_generated.zero_()
        own.finished.zero_()
        own.unfinished.fill_(self.form.rows)
        assert own.steps is not None
        own.steps.zero_()
        if own.eos_token_ids is not None and state.eos_token_ids is not None:
            own.eos_token_ids.fill_(_NO_TOKEN)[: state.eos_token_ids.numel()] = state.eos_token_ids
        if own.generator_state is None and self.form.draws:
            assert self._op.noise is not None
            self._op.noise.seeds.copy_(noise.seeds)

    def set_knobs(self, shaping: Shaping) -> None:
        """Makes the steps that are queued from here on act as `shaping` says."""
        own = self._op.shaping
        for name in self.form.knobs:
            value, target = getattr(shaping, name), getattr(own, name)
            target.copy_(value) if isinstance(value, Tensor) else target.fill_(value)
        if own.bias is not None:
            own.bias.zero_() if shaping.bias is None else own.bias.copy_(shaping.bias)
        if own.suppress is not None:
            own.suppress.fill_(_NO_TOKEN)
            if shaping.suppress is not None:
                own.suppress[: shaping.suppress.numel()] = shaping.suppress

    def finish(self, state: DecodeState, steps: int) -> None:
        """Writes what the first `steps` steps did into the call's state; of later ones nothing is left."""
        tokens = self.state.token_ids[:, self.capacity : self.capacity + steps]
        state.token_ids[:, state.prompt_length : state.prompt_length + steps] = tokens
        ended = torch.zeros_like(tokens, dtype=torch.bool)
        if state.eos_token_ids is not None:
            ended = torch.isin(tokens, state.eos_token_ids)
        before = (ended.cumsum(1) - ended.long()) > 0
        state.num_generated.copy_((~before).sum(1))
        state.finished.copy_(ended.any(1))
        state.unfinished.copy_((~state.finished).sum())

    def column(self, step: int) -> Tensor:
        """(rows,): a view of the tokens of `step`."""
        return self.state.column(step)

    def _end_invalid_rows(self, output: SampleOutput) -> None:
        """Rows that are not OK take the first end-of-sequence token instead of what the op fell back to."""
        state = self.state
        assert state.eos_token_ids is not None and state.steps is not None
        # A row counts this step exactly if it was not finished before it.
        bad = (output.status != RowStatus.OK) & (state.num_generated == state.steps)
        output.token_ids.copy_(torch.where(bad, state.eos_token_ids[0], output.token_ids))
        columns = (self.capacity + state.steps - 1)[:, None]
        for table in (state.token_ids, state.history):
            table.scatter_(1, columns, output.token_ids[:, None])
        state.finished.logical_or_(bad)
        state.unfinished.copy_((~state.finished).sum())


def _ids(count: int, device: torch.device) -> Tensor:
    return torch.full((count,), _NO_TOKEN, dtype=torch.int64, device=device)


def _per_row(name: str, rows: int, device: torch.device) -> Tensor:
    neutral = _NEUTRAL[name]
    dtype = torch.int64 if isinstance(neutral, int) else torch.float32
    return torch.full((rows,), neutral, dtype=dtype, device=device)


def _generator_words(device: torch.device) -> Tensor:
    if device.type == "cuda":
        return torch.zeros(2, dtype=torch.int64, device=device)
    return torch.default_generator.get_state()
