"""The plan of drafts. The caller's processors never see drafts, which the model may reject; copies of them may."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Protocol

from torch import Tensor

from pygen.plan.plan import Plan
from pygen.plan.stages import Item
from pygen.processors.base import call_processor
from pygen.processors.recognize import keeps_nothing


class _Cloneable(Protocol):
    def clone(self) -> Callable[..., object]: ...


class DraftCopy:
    """Acts on drafts as the caller's `processor` would: each round calls a new `clone()` of it."""

    def __init__(self, processor: _Cloneable) -> None:
        self._processor = processor
        self._copy: Callable[..., object] | None = None
        self.__name__ = type(processor).__name__

    def renew(self) -> None:
        """Starts a round; the processor has seen all accepted tokens."""
        self._copy = self._processor.clone()

    def __call__(self, input_ids: Tensor, scores: Tensor) -> object:
        assert self._copy is not None
        return call_processor(self._copy, input_ids, scores, {})


def for_drafts(plan: Plan) -> Plan:
    """`plan` without the caller's stateful processors; a `DraftCopy` replaces one that has a method `clone`.

    Drafts affect the speed of a call only: every processor acts on the model's own choices.
    """
    return dataclasses.replace(plan, items=tuple(item for given in plan.items for item in _of_drafts(given)))


def renew_copies(plan: Plan) -> None:
    """Call this when a round of drafts begins."""
    for item in plan.items:
        if isinstance(item.processor, DraftCopy):
            item.processor.renew()


def _of_drafts(item: Item) -> tuple[Item, ...]:
    if not item.is_callers or item.knobs or keeps_nothing(item.processor):
        return (item,)
    if callable(getattr(item.processor, "clone", None)):
        return (dataclasses.replace(item, processor=DraftCopy(item.processor)),)
    return ()
