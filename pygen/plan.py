"""The way from logits to the next tokens: which steps fuse into one op, and where the user's processors stand."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from pygen.loops.state import DecodeState
from pygen.ops import SampleOutput, prepare_process_logits, prepare_sample

LogitsProcessor = Callable[[Tensor, Tensor], Tensor]

# Knobs of the ops by the side of the user's processors on which they act, with the value that does nothing.
PENALTIES = {"repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0, "no_repeat_ngram_size": 0}
WARPERS = {
    "temperature": 1.0,
    "top_h": None,
    "top_k": 0,
    "top_p": 1.0,
    "min_p": 0.0,
    "typical_p": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
}

# Processors that Hugging Face builds from a setting; one given by hand takes the place of the built one.
_BUILT_FROM = {
    "RepetitionPenaltyLogitsProcessor": "repetition_penalty",
    "NoRepeatNGramLogitsProcessor": "no_repeat_ngram_size",
    "MinLengthLogitsProcessor": "min_length",
    "MinNewTokensLengthLogitsProcessor": "min_new_tokens",
    "SuppressTokensLogitsProcessor": "suppress_tokens",
    "SuppressTokensAtBeginLogitsProcessor": "begin_suppress_tokens",
    "LogitNormalization": "renormalize_logits",
    "TemperatureLogitsWarper": "temperature",
    "TopHLogitsWarper": "top_h",
    "TopKLogitsWarper": "top_k",
    "TopPLogitsWarper": "top_p",
    "MinPLogitsWarper": "min_p",
    "TypicalLogitsWarper": "typical_p",
    "EpsilonLogitsWarper": "epsilon_cutoff",
    "EtaLogitsWarper": "eta_cutoff",
}


class Choice(NamedTuple):
    """What one step chose, and the processed scores (rows, vocab_size) float32 when the plan keeps them."""

    output: SampleOutput
    scores: Tensor | None


class Chooser(Protocol):
    def __call__(self, logits: Tensor, step: int) -> Choice:
        """Chooses a token per row from `logits` (rows, vocab_size) and appends it to the state it is bound to."""
        ...


@dataclass(frozen=True)
class Plan:
    """How logits become tokens in one call.

    Without user processors one op does everything. With them there are three stages, in Hugging Face's order: penalties
    and bans, the user's processors, then warpers and the draw. Both ways give the same tokens.

    penalties, warpers, noise: arguments of `ops.sample` that are not neutral.
    bans: (first step, ids that may not be generated from that step on until the next entry).
    """

    do_sample: bool | Tensor
    penalties: dict[str, Any]
    warpers: dict[str, Any]
    noise: dict[str, Any]
    bans: tuple[tuple[int, tuple[int, ...]], ...] = ((0, ()),)
    processors: tuple[LogitsProcessor, ...] = ()
    num_logprobs: int = 0
    keep_scores: bool = False
    renormalize: bool = False

    def stages(self) -> tuple[str, ...]:
        """The stages of a step in words."""
        draw = "draw" if self.do_sample is not False else "argmax"
        shaping = [*self.penalties, *(["bans"] if any(ids for _, ids in self.bans) else [])]
        if not self.processors:
            return (" + ".join([*shaping, *self.warpers, draw]),)
        users = ", ".join(getattr(p, "__name__", type(p).__name__) for p in self.processors)
        return (" + ".join(shaping) or "float32 copy", users, " + ".join([*self.warpers, draw]))

    def bind(self, logits: Tensor, state: DecodeState) -> Chooser:
        """Checks every knob against `logits` (an example) and prepares the ops for `state`."""
        return _Staged(self, logits, state) if self.processors else _Fused(self, logits, state)

    def finish(self, scores: Tensor) -> Tensor:
        """A copy of processed scores as they are returned to the caller."""
        return torch.log_softmax(scores, dim=-1) if self.renormalize else scores.clone()


class _Fused:
    """One op a step; `process_logits` only where the scores are asked for."""

    def __init__(self, plan: Plan, logits: Tensor, state: DecodeState) -> None:
        self._plan = plan
        self._starts = [first for first, _ in plan.bans]
        shaping = {"do_sample": plan.do_sample, **plan.penalties, **plan.warpers, "state": state}
        self._draws = [
            prepare_sample(logits, suppress=ids or None, logprobs=plan.num_logprobs, **shaping, **plan.noise)
            for _, ids in plan.bans
        ]
        self._scores = [
            prepare_process_logits(logits, suppress=ids or None, **shaping) for _, ids in plan.bans if plan.keep_scores
        ]

    def __call__(self, logits: Tensor, step: int) -> Choice:
        segment = bisect_right(self._starts, step) - 1
        # Scores first: the draw appends to the history that penalties read.
        scores = self._plan.finish(self._scores[segment](logits, step=step)) if self._scores else None
        return Choice(self._draws[segment](logits, step=step), scores)


class _Staged:
    """Penalties and bans, then the user's processors, then warpers and the draw."""

    def __init__(self, plan: Plan, logits: Tensor, state: DecodeState) -> None:
        self._plan = plan
        self._state = state
        self._starts = [first for first, _ in plan.bans]
        self._shapes = [
            prepare_process_logits(logits, do_sample=False, suppress=ids or None, state=state, **plan.penalties)
            for _, ids in plan.bans
        ]
        example = logits.float() if logits.dtype != torch.float32 or not logits.is_contiguous() else logits
        example = example.contiguous()
        warping = {"do_sample": plan.do_sample, **plan.warpers}
        self._draw = prepare_sample(example, state=state, logprobs=plan.num_logprobs, **warping, **plan.noise)
        self._scores = prepare_process_logits(example, **warping) if plan.keep_scores else None

    def __call__(self, logits: Tensor, step: int) -> Choice:
        # A copy: processors may keep what they are given.
        scores = self._shapes[bisect_right(self._starts, step) - 1](logits, step=step).clone()
        input_ids = self._state.tokens(step)
        for place, processor in enumerate(self._plan.processors):
            scores = _checked(place, processor(input_ids, scores), logits.shape)
        scores = scores.float().contiguous()
        kept = self._plan.finish(self._scores(scores, step=step)) if self._scores is not None else None
        return Choice(self._draw(scores, step=step), kept)


def _checked(place: int, scores: Any, shape: torch.Size) -> Tensor:
    if not isinstance(scores, Tensor) or not scores.is_floating_point():
        kind = scores.dtype if isinstance(scores, Tensor) else type(scores).__name__
        raise TypeError(f"`logits_processor[{place}]` must return a floating-point tensor, got {kind}")
    if scores.shape != shape:
        raise ValueError(
            f"`logits_processor[{place}]` must return scores of shape {tuple(shape)}, got {tuple(scores.shape)}"
        )
    return scores


def active_knobs(neutral: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """The entries of `values` named in `neutral` that do something; None never does."""
    active = {}
    for name, nothing in neutral.items():
        value = values.get(name)
        if value is not None and (isinstance(value, Tensor) or value != nothing):
            active[name] = value
    return active


def ban_schedule(
    suppress: Iterable[int] | None, begin_suppress: Iterable[int] | None, eos: Iterable[int] | None, min_new_tokens: int
) -> tuple[tuple[int, tuple[int, ...]], ...]:
    """Which ids are banned from which step on: `suppress` always, `begin_suppress` at step 0, `eos` at first."""
    rules = [(set(suppress or ()), None), (set(begin_suppress or ()), 1), (set(eos or ()), min_new_tokens)]
    starts = sorted({0} | {end for ids, end in rules if ids and end})
    return tuple(
        (start, tuple(sorted(set().union(*(ids for ids, end in rules if end is None or start < end)))))
        for start in starts
    )


def check_processors(processors: Any, active: Iterable[str]) -> tuple[LogitsProcessor, ...]:
    """The user's processors as a tuple; refuses those that would have to take the place of a fused one."""
    if processors is None:
        return ()
    if not isinstance(processors, Sequence) or not all(callable(p) for p in processors):
        raise TypeError(f"`logits_processor` must be a list of callables, got {processors!r:.80}")
    settings = set(active)
    for processor in processors:
        name = type(processor).__name__
        if _BUILT_FROM.get(name) in settings:
            raise NotImplementedError(
                f"`logits_processor`: a {name} beside `{_BUILT_FROM[name]}`, whose place it would take, is not "
                f"available in this version; unset one of the two"
            )
    return tuple(processors)
