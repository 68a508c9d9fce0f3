"""The base class of processors, the list that calls them one after the other, and how the others call the ops."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from pygen.ops.process_logits import process_logits


class LogitsProcessor:
    """Turns the scores of the next token into others: `processor(input_ids, scores) -> scores`.

    input_ids: (rows, length) int64, the sequences so far. Warpers do not look at them and take None.
    scores: (rows, vocab_size), floating point; never modified. The result has their shape and dtype, and may be the
        same tensor where there is nothing to do.

    skips_hidden: ids below 0 are no tokens for it. Then `generate` writes -1 where the attention mask hides the prompt.
    """

    supports_continuous_batching: ClassVar[bool | None] = None
    skips_hidden: ClassVar[bool] = False

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} must define `__call__`")


class LogitsProcessorList(list[Any]):
    """Processors that are called in order, each with the scores of the one before.

    Items are callables (input_ids, scores) -> scores. One whose `__call__` has further parameters gets all of `kwargs`,
    in which they have to be; ValueError otherwise.
    """

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:
        for processor in self:
            scores = cast(Tensor, call_processor(processor, input_ids, scores, kwargs))
        return scores


def skips_hidden(processor: object) -> bool:
    """Whether it takes -1 for a position that is hidden; see `LogitsProcessor`."""
    return getattr(processor, "skips_hidden", False) is True


def call_processor(
    processor: Callable[..., object], input_ids: Tensor, scores: Tensor, kwargs: dict[str, Any]
) -> object:
    """One call as `LogitsProcessorList` makes it."""
    names, takes_any = _further_parameters(type(processor).__call__)
    missing = [name for name in names if name not in kwargs]
    if missing:
        raise ValueError(
            f"`{missing[0]}` must be passed to the logits processors, because {type(processor).__name__} takes it"
        )
    return processor(input_ids, scores, **kwargs) if names or takes_any else processor(input_ids, scores)


@functools.lru_cache(maxsize=256)
def _further_parameters(call: Callable[..., object]) -> tuple[tuple[str, ...], bool]:
    """Parameters of a method beside self, input_ids and scores, and whether it takes any keyword.

    Plain functions show none: their `__call__` is (self, *args, **kwargs) whatever they take.
    """
    try:
        parameters = list(inspect.signature(call).parameters.values())[1:]
    except ValueError:  # written in C
        return (), False
    if any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return (), False
    named = [p.name for p in parameters if p.kind is not p.VAR_KEYWORD]
    return tuple(named[2:]), len(named) < len(parameters)


def process(scores: Tensor, **knobs: Any) -> Tensor:
    """`ops.process_logits` on scores (..., vocab_size), in their dtype.

    float64 scores are looked at as float32; those that the op leaves alone keep all their digits.
    """
    rows = scores.reshape(-1, scores.shape[-1])
    rows = rows if rows.stride(-1) == 1 else rows.contiguous()
    if rows.dtype != torch.float64:
        return process_logits(rows, **knobs).to(scores.dtype).view(scores.shape)
    given = rows.float()
    result = process_logits(given, **knobs)
    return torch.where(result == given, rows, result.double()).view(scores.shape)


def suppress(scores: Tensor, token_ids: Tensor) -> Tensor:
    """`token_ids` (n,) become -inf in every row; ids outside the vocabulary are ignored."""
    return process(scores, do_sample=False, suppress=token_ids.to(scores.device))
