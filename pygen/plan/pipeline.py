"""The stages of a plan bound to ops: what runs in every step between the model's logits and the op that chooses."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
from torch import Tensor

from pygen.grammar.mask import GrammarMask
from pygen.knobs import FILTERS
from pygen.ops import SampleOutput, prepare_process_logits, prepare_sample
from pygen.plan.stages import Called, Fused, Item, Segment, Stage
from pygen.processors.base import call_processor, skips_hidden
from pygen.processors.guidance import UnbatchedClassifierFreeGuidanceLogitsProcessor
from pygen.processors.prefix import PrefixConstrainedLogitsProcessor

if TYPE_CHECKING:
    from pygen.ops import BeamState, DecodeState
    from pygen.plan.plan import Plan

# More suppressed ids than this, and than words of a bitmask, become a bitmask: a list is scanned for every row.
_MAX_LISTED = 1024

# (scores, *, step) -> scores, or what the last op returns.
Op = Callable[..., Any]


class StepResult(NamedTuple):
    """What one step chose, and the processed scores (rows, vocab_size) float32 when the plan keeps them."""

    output: SampleOutput
    scores: Tensor | None


class Chooser(Protocol):
    def __call__(self, logits: Tensor, step: int) -> StepResult:
        """Chooses a token per row from `logits` (rows, vocab_size) and appends it to the state it is bound to."""
        ...


class Binding(Protocol):
    """How a loop lets stages act on its sequences. Prepared ops are called (scores, step=step).

    first: whether the op receives the model's logits rather than the result of another stage.
    """

    @property
    def state(self) -> DecodeState | BeamState:
        """The state that the last op writes to."""
        ...

    def tokens(self, generated: int) -> Tensor:
        """(rows, length): the sequences as processors see them."""
        ...

    def history(self, generated: int) -> Tensor:
        """The same with -1 where the mask hides the prompt, for processors with `skips_hidden`."""
        ...

    def running(self) -> Tensor:
        """(rows,) bool in the caller's order: the rows that have not ended, and the beams that are alive."""
        ...

    # Added to the scores of rows that are not running.
    of_others: float

    def order(self) -> Tensor | None:
        """(rows,): the row that the caller's processors see at each index; None is the identity."""
        ...

    def start(self, logits: Tensor) -> Tensor:
        """The logits as new scores (rows, vocab_size) float32, for processors that come first."""
        ...

    def keeps(self, plan: Plan, last: Fused) -> bool:
        """Whether an op computes the scores that the last stage chooses from; see `Pipeline.processed`."""
        ...

    def shape(self, example: Tensor, first: bool, **knobs: Any) -> Op:
        """A prepared `process_logits`."""
        ...

    def choose(self, example: Tensor, first: bool, **knobs: Any) -> Op:
        """The prepared op of the last stage."""
        ...


class Pipeline:
    """Runs a plan's stages. In every step: `shape`, then `kept`, then `choose`, which moves the sequences on.

    choose: the op of the last stage on the current step, as `Binding.choose` made it.
    """

    def __init__(self, plan: Plan, logits: Tensor, binding: Binding) -> None:
        """Checks every knob against `logits` (an example). ValueError for ids outside its vocabulary."""
        _check_ids(plan, logits.shape[1])
        self._plan = plan
        self._binding = binding
        self._grammar: GrammarMask | None = next(
            (i.knobs["token_bitmask"] for i in plan.items if "token_bitmask" in i.knobs), None
        )
        self._enter(0, logits)

    def _enter(self, step: int, logits: Tensor) -> None:
        # Ops hold pointers to the state's tensors, so larger tensors need newly prepared ops.
        state = self._binding.state
        state.reserve(step + 1)
        self._capacity, self._grown = state.step_capacity, state.grown
        segment = self._plan.segment(step)
        self._first, self._end = segment.first, math.inf if segment.end is None else segment.end
        self._early, self._keeps, self.choose = _bind(self._plan, segment, logits, self._binding)

    def shape(self, logits: Tensor, step: int) -> Tensor:
        """The scores (rows, vocab_size) for the last op: the logits themselves where that op does everything."""
        if not (self._first <= step < self._end and self._has_columns(step)):
            self._enter(step, logits)
        if self._grammar is not None:
            self._grammar.fill(self._binding.tokens(step), _running_rows(self._binding), logits.shape[1])
        scores = logits
        for run in self._early:
            scores = run(scores, step=step)
        return scores

    def _has_columns(self, step: int) -> bool:
        return step < self._capacity and self._grown == self._binding.state.grown

    def kept(self, scores: Tensor, step: int) -> Tensor | None:
        """The processed scores as the caller gets them, from what `shape` returned; None where the plan keeps none."""
        return None if self._keeps is None else self._plan.finish(self._keeps(scores, step=step))

    def processed(self, scores: Tensor, step: int) -> Tensor | None:
        """The processed scores (rows, vocab_size) of a beam search, valid until the next step.

        They may differ by a constant per row where the plan keeps only log-probabilities. None where it keeps neither.
        """
        if self._keeps is not None:
            processed: Tensor = self._keeps(scores, step=step)
            return processed
        return scores if self._plan.num_logprobs > 0 else None

    def reorder(self, source_rows: Tensor, parents: Tensor) -> None:
        """Tells stateful processors that row i continues row source_rows[i].

        The caller's processors see rows in beam order, so they hear that beam i continues beam parents[i].
        """
        for item in self._plan.items:
            if hasattr(item.processor, "reorder_cache"):
                item.processor.reorder_cache(parents.long() if item.is_callers else source_rows)


class SamplePipeline(Pipeline):
    """A plan bound to a DecodeState: a `Chooser`."""

    def __init__(self, plan: Plan, logits: Tensor, state: DecodeState) -> None:
        super().__init__(plan, logits, SampleBinding(plan, state))
        # The most frequent plan is one op, the same on all steps; it takes the shortest way through Python.
        self._is_one_op = len(plan.segments) == 1 and not self._early and self._grammar is None

    def __call__(self, logits: Tensor, step: int) -> StepResult:
        scores = logits if self._is_one_op and self._has_columns(step) else self.shape(logits, step)
        # Before the draw, which appends to the history that penalties read.
        kept = None if self._keeps is None else self.kept(scores, step)
        return StepResult(self.choose(scores, step=step), kept)


def bind_plan(plan: Plan, logits: Tensor, state: DecodeState) -> Chooser:
    """Prepares the ops for `state`; `logits` is an example of what will come, against which all is checked."""
    return SamplePipeline(plan, logits, state)


def check_plan(plan: Plan, state: DecodeState) -> None:
    """Checks everything but the vocabulary, before there are logits: ValueError and TypeError of the ops."""
    check_knobs(plan, SampleBinding(plan, state), state.rows, state.token_ids.device)


def bind_ops(plan: Plan, logits: Tensor, binding: Binding, max_steps: int) -> dict[int, Any]:
    """The prepared op of every segment within `max_steps` steps, by its first step; for plans of one op per step."""
    _check_ids(plan, logits.shape[1])
    segments = [segment for segment in plan.segments if segment.first < max_steps]
    return {segment.first: _bind(plan, segment, logits, binding)[2] for segment in segments}


def check_knobs(plan: Plan, binding: Binding, rows: int, device: torch.device) -> None:
    """Checks all but the vocabulary before there are logits: ValueError and TypeError of the ops."""
    for item in plan.items:
        if isinstance(item.processor, UnbatchedClassifierFreeGuidanceLogitsProcessor):
            item.processor.prepare()
    example = torch.zeros((rows, 1), device=device)
    for segment in plan.segments:
        _bind(plan, segment, example, binding)


def _bind(plan: Plan, segment: Segment, logits: Tensor, binding: Binding) -> tuple[list[Op], Op | None, Op]:
    """The stages before the last, the op that computes the scores to keep, and the last op."""
    example = torch.empty_like(logits, dtype=torch.float32, memory_format=torch.contiguous_format)
    early: list[Op] = []
    for stage in segment.early:
        if isinstance(stage, Called):
            early.append(_calls(stage, binding, first=not early))
        else:
            knobs = op_knobs(stage, plan, example)
            early.append(binding.shape(example if early else logits, not early, **knobs))
    example, first = (example, False) if early else (logits, True)
    knobs = {**op_knobs(segment.last, plan, example), "do_sample": plan.do_sample}
    if plan.greedy_rows is not None:
        knobs.setdefault("temperature", plan.greedy_rows)
    if plan.kept and any(map(_may_remove, segment.early)):
        # The op that draws reports what survives, whoever removes the others.
        knobs.setdefault("token_bitmask", every_token(example.shape[1], example.device))
    keeps = binding.shape(example, first, **knobs) if binding.keeps(plan, segment.last) else None
    return early, keeps, binding.choose(example, first, **knobs)


def _running_rows(binding: Binding) -> Tensor:
    """(rows,) bool by row, not in the caller's order."""
    order, running = binding.order(), binding.running()
    return running if order is None else torch.empty_like(running).index_copy_(0, order, running)


def _may_remove(stage: Stage) -> bool:
    """Whether a stage may remove tokens by their scores."""
    return isinstance(stage, Called) or any(knob.name in stage.knobs for knob in FILTERS)


def _calls(stage: Called, binding: Binding, *, first: bool) -> Op:
    def run(scores: Tensor, *, step: int) -> Tensor:
        # New memory, because processors may keep what they are given.
        scores = binding.start(scores) if first else scores.clone()
        for item in stage.items:
            input_ids = (binding.history if skips_hidden(item.processor) else binding.tokens)(step)
            scores = _called(item, input_ids, scores, binding)
        return scores.float().contiguous()

    return run


def _called(item: Item, input_ids: Tensor, scores: Tensor, binding: Binding) -> Tensor:
    """The processor's scores by row."""
    order = binding.order() if item.is_callers else None
    if order is not None:
        input_ids, scores = input_ids[order], scores[order]
    if isinstance(item.processor, PrefixConstrainedLogitsProcessor):
        asked = binding.running().nonzero()[:, 0].tolist()
        called: object = item.processor.for_rows(asked, input_ids, scores, binding.of_others)
    else:
        called = call_processor(item.processor, input_ids, scores, {})
    checked = _checked(item.name, called, scores.shape)
    return checked if order is None else torch.empty_like(checked).index_copy_(0, order, checked)


def op_knobs(stage: Fused, plan: Plan, example: Tensor) -> dict[str, Any]:
    """Arguments of `process_logits` for scores like `example`."""
    knobs = {**stage.knobs, "do_sample": plan.do_sample if stage.warps else False}
    if "bias" in knobs:
        table = torch.zeros(example.shape[1], device="cpu")
        inside = {token_id: bias for token_id, bias in knobs["bias"].items() if token_id < len(table)}
        table[list(inside)] = torch.tensor(list(inside.values()), device="cpu")
        knobs["bias"] = table.to(example.device)
    if "token_bitmask" in knobs:
        knobs["token_bitmask"] = knobs["token_bitmask"].table(example.shape[1], example.device)
    elif len(knobs.get("suppress", ())) > max(_MAX_LISTED, example.shape[1] // 32):
        knobs["token_bitmask"] = _all_but(knobs.pop("suppress"), example.shape[1]).to(example.device)
    return knobs


def every_token(vocab_size: int, device: torch.device) -> Tensor:
    """A bitmask of all ids."""
    return _all_but((), vocab_size).to(device)


def _all_but(token_ids: Sequence[int], vocab_size: int) -> Tensor:
    """(ceil(vocab_size / 32),) int32: the bitmask of all ids but these."""
    allowed = torch.ones(-(-vocab_size // 32) * 32, dtype=torch.bool, device="cpu")
    allowed[[token_id for token_id in token_ids if 0 <= token_id < vocab_size]] = False
    words: Tensor = (allowed.view(-1, 32).long() << torch.arange(32, device="cpu")).sum(1).to(torch.int32)
    return words


def _check_ids(plan: Plan, vocab_size: int) -> None:
    for item in plan.items:
        if item.largest_id >= vocab_size:
            raise ValueError(
                f"`{item.name}` must hold ids below the vocabulary size {vocab_size}, got {item.largest_id}"
            )
    ends = plan.ends_invalid_rows
    if ends and not any(0 <= token_id < vocab_size for token_id in ends):
        raise ValueError(
            f"`on_invalid`='eos' needs an `eos_token_id` below the vocabulary size {vocab_size}, got {list(ends)}"
        )


def _checked(name: str, scores: object, shape: torch.Size) -> Tensor:
    """The scores that a processor returned, after checks of type and shape."""
    if not isinstance(scores, Tensor) or not scores.is_floating_point():
        kind = scores.dtype if isinstance(scores, Tensor) else type(scores).__name__
        raise TypeError(f"`{name}` must return a floating-point tensor, got {kind}")
    if scores.shape != shape:
        raise ValueError(f"`{name}` must return scores of shape {tuple(shape)}, got {tuple(scores.shape)}")
    return scores


class SampleBinding:
    """Rows drawn independently of each other; see `Binding`. Finished rows are only padded."""

    of_others = 0.0

    def __init__(self, plan: Plan, state: DecodeState) -> None:
        self._draw = {"state": state, "logprobs": plan.num_logprobs, **plan.kept, **plan.noise}
        self.state = state
        self.tokens = state.tokens

    def history(self, generated: int) -> Tensor:
        return self.state.history[:, : self.state.prompt_length + generated]

    def running(self) -> Tensor:
        return ~self.state.finished

    def order(self) -> Tensor | None:
        return None

    def start(self, logits: Tensor) -> Tensor:
        return logits.to(torch.float32, copy=True, memory_format=torch.contiguous_format)

    def keeps(self, plan: Plan, last: Fused) -> bool:
        return plan.keep_scores

    def shape(self, example: Tensor, first: bool, **knobs: Any) -> Op:
        return prepare_process_logits(example, state=self.state, **knobs)

    def choose(self, example: Tensor, first: bool, **knobs: Any) -> Op:
        return prepare_sample(example, **knobs, **self._draw)
