"""What a value may be, with the words of its error message: the rules of settings, processors and knobs of the ops."""

from __future__ import annotations

import itertools
import math
import numbers
import reprlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

_INT64_LIMIT = 2**63

_repr = reprlib.Repr()
_repr.maxstring = _repr.maxother = _repr.maxlong = 80


@dataclass(frozen=True)
class Rule:
    """`accepts(value)` decides, `allowed` says it in words; `per_row` also allows one such value per row, in code."""

    allowed: str
    accepts: Callable[[Any], bool]
    per_row: bool = False

    def problem(self, name: str, value: object, *, in_file: bool = False) -> str | None:
        """The message for a refused value, or None. `None` is always allowed: it means unset."""
        value = plain(value)
        if value is None or self.accepts(value):
            return None
        allowed = self.allowed
        if self.per_row and not in_file:
            if isinstance(value, (list, tuple)) and value and all(map(self.accepts, value)):
                return None
            allowed += ", or a sequence of them, one per row"
        return f"`{name}` must be {allowed}, got {shown(value)}"


@dataclass(frozen=True)
class NumberRule(Rule):
    """A rule that asks for a type and a range. Of a value whose type was checked before, `holds` asks for the range
    alone, of a tensor by element, and `range` says it in words."""

    range: str = ""
    holds: Callable[[Any], Any] = bool


def shown(value: object) -> str:
    """`repr`, cut to a length that fits an error message."""
    try:
        return _repr.repr(value)
    except ValueError:  # an int with more digits than Python will print
        return f"{type(value).__name__} too large to print"


def plain(value: Any) -> Any:
    """A tensor, array or array scalar as Python numbers (a tensor on a GPU is read, once); anything else unchanged."""
    return value.tolist() if hasattr(value, "tolist") else value


def is_number(value: object) -> bool:
    """Whether it is a finite int or float, and not a bool."""
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an int beyond float64
        return False


def is_integral(value: object) -> bool:
    """Whether it is an integer of any size, and not a bool."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def is_integer(value: Any) -> bool:
    """Whether it is a 64-bit integer, and not a bool."""
    return is_integral(value) and -_INT64_LIMIT <= value < _INT64_LIMIT


def number(interval: str = "(-inf, inf)", *, per_row: bool = False) -> NumberRule:
    """A finite int or float inside `interval`, written as in mathematics: `"(0, 1]"`."""
    low, high = map(float, interval[1:-1].split(","))
    open_low, open_high = interval[0] == "(", interval[-1] == ")"

    def holds(value: Any) -> Any:
        return (value > low if open_low else value >= low) & (value < high if open_high else value <= high)

    if high < math.inf:
        allowed, words = f"a number in {interval}", f"in {interval}"
    elif low > -math.inf:
        bound = f"{'>' if open_low else '>='} {low:g}"
        allowed, words = f"a finite number {bound}", f"finite and {bound}"
    else:
        allowed, words = "a finite number", "finite"
    return NumberRule(allowed, lambda value: is_number(value) and bool(holds(value)), per_row, words, holds)


def integer(low: int | None = None, high: int = _INT64_LIMIT - 1, *, per_row: bool = False) -> NumberRule:
    """An integer (not a bool) in `[low, high]`, within 64 bits."""
    least = -_INT64_LIMIT if low is None else low
    if high < _INT64_LIMIT - 1:
        allowed, words = f"an integer in [{low}, {high}]", f"in [{low}, {high}]"
    else:
        words = "" if low is None else f">= {low}"
        allowed = f"a 64-bit integer {words}".rstrip()

    def holds(value: Any) -> Any:
        # An int beyond 64 bits is a matter of the type, and the ops take it.
        return value >= least if high == _INT64_LIMIT - 1 else (value >= least) & (value <= high)

    return NumberRule(allowed, lambda value: is_integer(value) and bool(holds(value)), per_row, words, holds)


def one_of(*choices: str) -> Rule:
    return Rule(f"one of {', '.join(map(repr, choices))}", lambda value: isinstance(value, str) and value in choices)


def instance_of_named(name: str, allowed: str) -> Rule:
    """By class name, so that transformers' own class of that name passes without an import of transformers."""
    return Rule(allowed, lambda value: any(base.__name__ == name for base in type(value).__mro__))


def is_ids(value: object, *, low: int | None = None, empty: bool = True) -> bool:
    """Whether it is a list or tuple of 64-bit integers, each at least `low`."""
    if not isinstance(value, (list, tuple)) or not (empty or value):
        return False
    if value and set(map(type, value)) == {int}:  # lists may be long
        return bool((-_INT64_LIMIT if low is None else low) <= min(value) and max(value) < _INT64_LIMIT)
    return all(map(integer(low).accepts, value))


def is_id_lists(value: object) -> bool:
    """Whether it is a non-empty list or tuple of non-empty lists or tuples of ids >= 0."""
    if not isinstance(value, (list, tuple)) or not value or not all(isinstance(ids, (list, tuple)) for ids in value):
        return False
    return all(value) and is_ids(list(itertools.chain.from_iterable(value)), low=0)


def checked(name: str, value: Any, rule: Rule, *, wrong_type: type[Exception] = ValueError) -> Any:
    """`value` as a Python number if the rule accepts it; else ValueError, or `wrong_type` for what is no number.

    transformers raises ValueError for wrong types too where it looks at them, and TypeError where it computes first.
    """
    given = plain(value)
    if given is not None and rule.accepts(given):
        return given
    error = ValueError if isinstance(given, numbers.Real) else wrong_type
    raise error(f"`{name}` must be {rule.allowed}, got {shown(value)}")
