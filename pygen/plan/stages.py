"""The stages of a step: entries in their order, neighbours grouped where one op can do them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from pygen.knobs import PENALTIES, WARPERS

Knobs = dict[str, Any]

# Arguments of the ops in the order in which an op applies them; the last one only accompanies filters.
_ORDER = ("bias", *(knob.name for knob in PENALTIES), "suppress", "token_bitmask", *(knob.name for knob in WARPERS))
_RANK = {**{name: rank for rank, name in enumerate(_ORDER)}, "min_tokens_to_keep": -1}


@dataclass(frozen=True)
class Item:
    """One entry of the order: knobs of an op, or a processor where no op does the same.

    name: the setting it comes from, or its index in `logits_processor`.
    knobs: `bias` as {id: bias}, `suppress` as a tuple of ids, `token_bitmask` as a `GrammarMask`, the rest as the ops
        take them; empty: `processor`.
    why: the reason that no op does it.
    only_bans: the processor only sets scores to -inf, and chooses them without reading scores.
    first, end: it acts on the steps in [first, end), which may be negative; end=None has no end.
    largest_id: an id that the vocabulary must contain; -1 requires none.
    is_callers: `processor` is an object of the caller's.
    """

    name: str
    knobs: Knobs = field(default_factory=dict)
    processor: Any = None
    why: str = ""
    only_bans: bool = False
    first: int = 0
    end: int | None = None
    largest_id: int = -1
    is_callers: bool = False

    def acts_on(self, step: int) -> bool:
        return self.first <= step and (self.end is None or step < self.end)

    @property
    def rank(self) -> int:
        """Its position in the order of an op."""
        return max(_RANK[name] for name in self.knobs)

    @property
    def label(self) -> str:
        """A name for the processor."""
        return str(getattr(self.processor, "__name__", type(self.processor).__name__))


@dataclass(frozen=True)
class Fused:
    """One op. Without knobs it does nothing, or only draws."""

    knobs: Knobs

    @property
    def words(self) -> list[str]:
        active = [name for name in _RANK if name in self.knobs and self.knobs[name] != ()]
        other = {"suppress": "bans", "token_bitmask": "grammar"}
        return [other.get(name, name) for name in active if name != "min_tokens_to_keep"]

    @property
    def warps(self) -> bool:
        """Whether a knob acts on sampled rows only."""
        return any(_RANK[name] > _RANK["token_bitmask"] for name in self.knobs)

    def joined(self, item: Item) -> Fused | None:
        """The op that also does `item`, after the rest; None where no op can."""
        if max((_RANK[name] for name in self.knobs), default=-1) > item.rank:
            return None
        knobs = dict(self.knobs)
        for name, value in item.knobs.items():
            if name == "suppress":
                value = tuple(sorted({*knobs.get(name, ()), *value}))
            elif name in knobs and not (name == "min_tokens_to_keep" and knobs[name] == value):
                return None
            knobs[name] = value
        return Fused(knobs)


@dataclass(frozen=True)
class Called:
    """Processors called one after the other in Python."""

    items: tuple[Item, ...]


Stage = Fused | Called


@dataclass(frozen=True)
class Segment:
    """The stages of the steps in [first, end); the last one is an op, and draws."""

    first: int
    end: int | None
    early: tuple[Stage, ...]
    last: Fused


def segments_of(items: Sequence[Item]) -> tuple[Segment, ...]:
    """Consecutive segments that cover all steps from 0."""
    bounds = {bound for item in items for bound in (item.first, item.end) if bound is not None and bound > 0}
    starts = [0, *sorted(bounds)]
    ends = [*starts[1:], None]
    return tuple(_segment(first, end, items) for first, end in zip(starts, ends, strict=True))


def _segment(first: int, end: int | None, items: Sequence[Item]) -> Segment:
    stages = list(_grouped(_bans_first(item for item in items if item.acts_on(first))))
    last = stages.pop() if stages and isinstance(stages[-1], Fused) else Fused({})
    assert isinstance(last, Fused)
    return Segment(first, end, tuple(stages), last)


def _bans_first(items: Iterable[Item]) -> list[Item]:
    """Moves processors that only ban ahead of neighbouring penalties and bans, so that these stay in one op.

    The result is the same, because penalties and bans leave -inf unchanged.
    """
    ordered: list[Item] = []
    start = 0
    for item in items:
        if item.only_bans:
            ordered.insert(start, item)
            start += 1
            continue
        ordered.append(item)
        if not item.knobs or item.rank > _RANK["token_bitmask"]:
            start = len(ordered)
    return ordered


def _grouped(items: Iterable[Item]) -> Iterator[Stage]:
    stage: Stage | None = None
    for item in items:
        longer: Stage | None
        if item.knobs:
            longer = stage.joined(item) if isinstance(stage, Fused) else None
        else:
            longer = Called((*stage.items, item)) if isinstance(stage, Called) else None
        if longer is None:
            if stage is not None:
                yield stage
            longer = Fused(dict(item.knobs)) if item.knobs else Called((item,))
        stage = longer
    if stage is not None:
        yield stage
