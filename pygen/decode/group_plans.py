"""Groups of beams: which settings go together, and the plan of each group, whose processors may keep a state."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

from torch import Tensor

from pygen.plan.stages import Item
from pygen.processors.base import call_processor, skips_hidden
from pygen.processors.recognize import keeps_nothing

if TYPE_CHECKING:
    from pygen.plan.plan import Plan


def group_plans(plan: Plan, num_groups: int) -> list[Plan]:
    """`plan` for each group. NotImplementedError names a processor that keeps something by row and has no `clone()`."""
    items = [[_of_group(item, group) for item in plan.items] for group in range(num_groups)]
    return [dataclasses.replace(plan, items=tuple(of_group)) for of_group in items]


def _of_group(item: Item, group: int) -> Item:
    if item.knobs:
        return item
    if callable(getattr(item.processor, "clone", None)):
        return dataclasses.replace(item, processor=item.processor.clone())
    if hasattr(item.processor, "reorder_cache"):
        raise _refusal(item.name)
    if not item.is_callers or keeps_nothing(item.processor):
        return item
    return dataclasses.replace(item, processor=_Shared(item.name, item.processor, group))


def _refusal(name: str) -> NotImplementedError:
    return NotImplementedError(
        f"`{name}` keeps a state, which groups of beams cannot share: it is available with `num_beam_groups` > 1 if it "
        f"has a method `clone()`"
    )


class _Shared:
    """A processor of the caller that groups share. It receives the number of the group if it takes `beam_group_idx`.

    A processor whose attributes change with each call cannot be shared.
    """

    def __init__(self, name: str, processor: Any, group: int) -> None:
        self._name = name
        self._processor = processor
        self._group = group
        self._calls = 0
        self.skips_hidden = skips_hidden(processor)
        self.__name__ = type(processor).__name__

    def __call__(self, input_ids: Tensor, scores: Tensor) -> object:
        before = _attributes(self._processor)
        result = call_processor(self._processor, input_ids, scores, {"beam_group_idx": self._group})
        self._calls += 1
        # The first call may keep what all the later ones use.
        if self._calls > 1 and _attributes(self._processor) != before:
            raise _refusal(self._name)
        return result


def _attributes(processor: object) -> dict[str, tuple[int, int]]:
    """Marks that differ once an attribute is set again, or its tensor or list changes in place."""

    def mark(value: object) -> int:
        return value._version if isinstance(value, Tensor) else len(value) if isinstance(value, list) else 0

    return {name: (id(value), mark(value)) for name, value in getattr(processor, "__dict__", {}).items()}


def check_groups(num_beams: int, num_beam_groups: int, diversity_penalty: float | None, do_sample: bool | None) -> None:
    """ValueError where the settings do not go together."""
    if num_beam_groups == 1:
        if diversity_penalty:
            raise ValueError(f"`diversity_penalty` needs `num_beam_groups` > 1, got {diversity_penalty}")
        return
    if num_beams % num_beam_groups != 0:
        raise ValueError(f"`num_beam_groups` must divide `num_beams` ({num_beams}), got {num_beam_groups}")
    if diversity_penalty is None or not 0 < diversity_penalty < math.inf:
        raise ValueError(
            f"`diversity_penalty` must be finite and > 0 with `num_beam_groups` > 1, got {diversity_penalty}"
        )
    if do_sample:
        raise ValueError("`do_sample` must be False with `num_beam_groups` > 1, got True")
