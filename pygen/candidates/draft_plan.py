"""The plan of drafts: the caller's processors are not called with texts that the model may refuse."""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import Tensor

from pygen.plan.plan import Plan
from pygen.plan.stages import Item
from pygen.processors.base import call_processor
from pygen.processors.recognize import keeps_nothing


class DraftCopy:
    """Acts on drafts as the caller's `processor` would: calls a `clone()` of it, made anew for every round."""

    def __init__(self, processor: Any) -> None:
        self._processor = processor
        self._copy: Any = None
        self.__name__ = type(processor).__name__

    def renew(self) -> None:
        """A round begins, and the processor has seen all that is certain."""
        self._copy = self._processor.clone()

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Any:
        return call_processor(self._copy, input_ids, scores, {})


def for_drafts(plan: Plan) -> Plan:
    """`plan` without the caller's processors, but for those that keep nothing and, as `DraftCopy`, those with `clone`.

    What is drafted only makes a call faster: the model's own choices see every processor.
    """
    return dataclasses.replace(plan, items=tuple(item for given in plan.items for item in _of_drafts(given)))


def renew_copies(plan: Plan) -> None:
    """To be called when a round of drafts begins."""
    for item in plan.items:
        if isinstance(item.processor, DraftCopy):
            item.processor.renew()


def _of_drafts(item: Item) -> tuple[Item, ...]:
    if not item.is_callers or item.knobs or keeps_nothing(item.processor):
        return (item,)
    if callable(getattr(item.processor, "clone", None)):
        return (dataclasses.replace(item, processor=DraftCopy(item.processor)),)
    return ()
