"""A decoding loop of the caller's, and the arguments that transformers would call it with."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from pygen.call.call import Call
from pygen.outputs import GenerateOutput
from pygen.plan.pipeline import op_knobs
from pygen.plan.plan import Plan, make_plan
from pygen.plan.stages import Fused, Item
from pygen.processors import LogitNormalization, LogitsProcessor, LogitsProcessorList
from pygen.processors.base import call_processor, process, skips_hidden
from pygen.request.settings import config_for_hooks
from pygen.stopping.criteria import EosTokenCriteria, MaxLengthCriteria, MaxTimeCriteria, StoppingCriteriaList

# Every loop receives these; the rest of its signature are its own settings.
_COMMON = ("input_ids", "logits_processor", "stopping_criteria", "generation_config")


def own_loop(
    loop: object, model: nn.Module, given: dict[str, object], kwargs: dict[str, object]
) -> Callable[[Call], Tensor | GenerateOutput]:
    """The way from a call to what `loop` returns.

    Parameters of `loop` that neither transformers' loops nor the model's forward have are its own: their arguments are
    taken out of `kwargs`, and those of `given` are passed where it names them.
    """
    if not callable(loop):
        raise TypeError(f"`custom_generate` must be a function, a folder or a repository, got {type(loop).__name__}")
    not_own = {*_COMMON, *inspect.signature(getattr(model, "forward", model)).parameters}
    names = [name for name in list(inspect.signature(loop).parameters)[1:] if name not in not_own]
    own = {name: given[name] for name in names if given.get(name) is not None}
    own |= {name: kwargs[name] for name in names if name in kwargs}
    for name in own.keys() & kwargs.keys() - {"tokenizer"}:
        del kwargs[name]
    return functools.partial(_generate_with, loop, own)


def _generate_with(
    loop: Callable[..., Tensor | GenerateOutput], own: dict[str, object], call: Call
) -> Tensor | GenerateOutput:
    """`loop(model, input_ids, logits_processor, stopping_criteria, generation_config, **own, **model_kwargs)`.

    input_ids: (rows, prompt_length), expanded like the model's inputs.
    logits_processor, stopping_criteria: lists of all that the settings and the caller ask for, to be called with
        (input_ids, scores).
    generation_config: the settings of the call, with `max_length` and `min_length` worked out and the special tokens
        as tensors too (`_eos_token_tensor`, `_pad_token_tensor`, ...).
    model_kwargs: what the model's forwards take, a cache included.
    """
    plan = make_plan(call)
    if isinstance(plan.do_sample, Tensor) or plan.greedy_rows is not None:
        raise ValueError("`custom_generate` needs one `do_sample` and a `temperature` above 0 for all rows")
    call.start()
    input_ids = call.prompt.input_ids.repeat_interleave(call.num_copies, dim=0)
    if call.streamer is not None:
        call.streamer.put(input_ids.to("cpu", copy=True))
    config = config_for_hooks(call.config, call.tokens, input_ids.device)
    config.max_length = input_ids.shape[1] + call.lengths.max_new_tokens
    config.min_length = input_ids.shape[1] + call.lengths.min_new_tokens
    return loop(
        call.model,
        input_ids,
        logits_processor=_processors(call, plan),
        stopping_criteria=_criteria(call),
        generation_config=config,
        **own,
        **call.adapter.hand_over(),
    )


def _processors(call: Call, plan: Plan) -> LogitsProcessorList:
    visible = call.prompt.visible()
    if visible is not None:
        visible = visible.repeat_interleave(call.num_copies, dim=0) != 0
    processors = [_Planned(item, plan, call.prompt.input_ids.shape[1], visible) for item in plan.items]
    return LogitsProcessorList([*processors, *([LogitNormalization()] if plan.renormalize else [])])


def _criteria(call: Call) -> StoppingCriteriaList:
    stopping = call.stopping
    criteria: list[Any] = [MaxLengthCriteria(call.prompt.input_ids.shape[1] + call.lengths.max_new_tokens)]
    if stopping.max_time is not None:
        criteria.append(MaxTimeCriteria(stopping.max_time))
    if stopping.eos_token_ids is not None:
        criteria.append(EosTokenCriteria(stopping.eos_token_ids))
    return StoppingCriteriaList([*criteria, *stopping.criteria])


class _Planned(LogitsProcessor):
    """One entry of a plan, on the steps that it acts on."""

    def __init__(self, item: Item, plan: Plan, prompt_length: int, visible: Tensor | None) -> None:
        self._item = item
        self._plan = plan
        self._prompt_length = prompt_length
        self._visible = visible

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        item = self._item
        if not item.acts_on(input_ids.shape[1] - self._prompt_length):
            return scores
        if self._visible is not None and (item.knobs or skips_hidden(item.processor)):
            hidden = torch.nn.functional.pad(~self._visible, (0, input_ids.shape[1] - self._prompt_length))
            input_ids = input_ids.masked_fill(hidden, -1)
        if not item.knobs:
            processed = cast(Tensor, call_processor(item.processor, input_ids, scores, {}))
            return processed
        knobs = op_knobs(Fused(item.knobs), self._plan, scores)
        return process(scores, input_ids=input_ids, prompt_lengths=self._prompt_length, **knobs)
