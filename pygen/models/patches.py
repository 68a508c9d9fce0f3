"""Patches: the method `generate` put in the place of a model's or a class's own, until it is undone."""

from __future__ import annotations

import copy
import functools
import inspect
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, TypeVar

from pygen.models.own_generate import MISSING, below_own_generate

Method = TypeVar("Method", bound=Callable[..., Any])

_NAME = "generate"
_counting = threading.Lock()
_methods: list[Callable[..., Any]] = []  # the one of `method_of_patches`


def method_of_patches(method: Method) -> Method:
    """Decorates the method `generate` that `put_generate` puts in place; one in the whole library."""
    _methods[:] = [method]
    return method


class Patch:
    """What `patch` returns; undoes it once, by `undo()` or at the end of a `with` block."""

    def __init__(self, target: Any) -> None:
        self._target = target
        self._active = True

    def undo(self) -> None:
        """Takes this patch back; the last one of a target puts back what was there before, or nothing.

        Patches may be undone in any order, and again, which does nothing. RuntimeError if `generate` has been replaced
        by something else since: that has to go first, and nothing is changed.
        """
        if not self._active:
            return
        with _counting:
            stand_in = vars(self._target).get(_NAME)
            if not _is_stand_in(stand_in):
                raise RuntimeError(
                    f"`generate` of {_described(self._target)} has been replaced after pygen.patch(), by "
                    f"{stand_in!r:.80}; undo that first"
                )
            stand_in.patches -= 1
            self._active = False
            if stand_in.patches == 0:
                _put(self._target, stand_in.pygen_original)

    def __enter__(self) -> Patch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.undo()

    def __repr__(self) -> str:
        return f"<pygen.patch of {_described(self._target)}: {'active' if self._active else 'undone'}>"


def put_generate(target: Any) -> Patch:
    """`patch` without its checks, of `target` itself. It may be called by several threads."""
    with _counting:
        stand_in = vars(target).get(_NAME, MISSING)
        if not _is_stand_in(stand_in):
            stand_in = _of_class(target) if isinstance(target, type) else _OfInstance(target, stand_in)
            _put(target, stand_in)
        stand_in.patches += 1
    return Patch(target)


class _OfInstance:
    """`generate` of one patched model, in the model's own `vars()`.

    patches: how many have not been undone. pygen_original: what stood in `vars()` before, if anything did.
    """

    __name__ = _NAME

    def __init__(self, model: Any, pygen_original: Any = MISSING) -> None:
        self._model = model
        self.pygen_original = pygen_original
        self.patches = 0
        self.__doc__ = _methods[0].__doc__
        signature = inspect.signature(_methods[0])
        self.__signature__ = signature.replace(parameters=list(signature.parameters.values())[1:])

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return _methods[0](self._model, *args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> _OfInstance:
        return _OfInstance(*(copy.deepcopy(argument, memo) for argument in self._arguments()))

    def __reduce__(self) -> tuple[Any, ...]:
        return _OfInstance, self._arguments()

    def _arguments(self) -> tuple[Any, ...]:
        return (self._model,) if self.pygen_original is MISSING else (self._model, self.pygen_original)


def _of_class(target: type) -> Any:
    """`generate` of the instances of a patched class, with the attributes of `_OfInstance`."""

    @functools.wraps(_methods[0])
    def generate(self: Any, *args: Any, **kwargs: Any) -> Any:
        below = inspect.getattr_static(type(self), _NAME) is not generate
        with below_own_generate(below):
            return _methods[0](self, *args, **kwargs)

    stand_in: Any = generate
    stand_in.pygen_original = vars(target).get(_NAME, MISSING)
    stand_in.patches = 0
    return stand_in


def _put(target: Any, value: Any) -> None:
    """Sets `generate` in `vars(target)`, or takes it out where `value` is missing."""
    if isinstance(target, type):
        delattr(target, _NAME) if value is MISSING else setattr(target, _NAME, value)
    elif value is MISSING:
        del vars(target)[_NAME]
    else:
        vars(target)[_NAME] = value


def _is_stand_in(value: Any) -> bool:
    return hasattr(value, "pygen_original")


def _described(target: Any) -> str:
    return target.__qualname__ if isinstance(target, type) else f"a {type(target).__qualname__}"
