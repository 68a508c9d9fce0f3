"""Patches, which replace the method `generate` of a model or a class until someone undoes them."""

from __future__ import annotations

import copy
import functools
import inspect
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Protocol, TypeGuard, TypeVar

from pygen.models.own_generate import MISSING, below_own_generate

Method = TypeVar("Method", bound=Callable[..., object])

_NAME = "generate"
_counting = threading.Lock()
_methods: list[Callable[..., object]] = []  # the method that `method_of_patches` decorates


def method_of_patches(method: Method) -> Method:
    """Decorates the method that replaces `generate` in patches; the library has one such method."""
    _methods[:] = [method]
    return method


class _StandIn(Protocol):
    """The method in place of `generate`.

    patches: the number of patches that nobody has undone.
    pygen_original: the previous entry in `vars()` of the target, or MISSING.
    """

    patches: int
    pygen_original: object


class Patch:
    """The result of `patch`. `undo()`, or the end of a `with` block, undoes the patch once."""

    def __init__(self, target: object) -> None:
        self._target = target
        self._active = True

    def undo(self) -> None:
        """Undoes this patch; undoing the last patch of a target restores the target's previous `generate`, if any.

        The order of undoing is free, and undoing twice does nothing. If someone else has replaced `generate` since,
        `undo` raises RuntimeError and changes nothing; undo that replacement first.
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


def put_generate(target: object) -> Patch:
    """Patches `target` itself, without the checks of `patch`. Several threads may call it."""
    with _counting:
        stand_in = vars(target).get(_NAME, MISSING)
        if not _is_stand_in(stand_in):
            stand_in = _of_class(target) if isinstance(target, type) else _OfInstance(target, stand_in)
            _put(target, stand_in)
        stand_in.patches += 1
    return Patch(target)


class _OfInstance:
    """The `_StandIn` of one patched model, in the model's `vars()`."""

    __name__ = _NAME

    def __init__(self, model: object, pygen_original: object = MISSING) -> None:
        self._model = model
        self.pygen_original = pygen_original
        self.patches = 0
        self.__doc__ = _methods[0].__doc__
        signature = inspect.signature(_methods[0])
        self.__signature__ = signature.replace(parameters=list(signature.parameters.values())[1:])

    def __call__(self, *args: object, **kwargs: object) -> object:
        return _methods[0](self._model, *args, **kwargs)

    def __deepcopy__(self, memo: dict[int, object]) -> _OfInstance:
        return _OfInstance(*(copy.deepcopy(argument, memo) for argument in self._arguments()))

    def __reduce__(self) -> tuple[type[_OfInstance], tuple[object, ...]]:
        return _OfInstance, self._arguments()

    def _arguments(self) -> tuple[object] | tuple[object, object]:
        return (self._model,) if self.pygen_original is MISSING else (self._model, self.pygen_original)


def _of_class(target: type) -> _StandIn:
    """The `_StandIn` of a patched class, for its instances."""

    @functools.wraps(_methods[0])
    def generate(self: object, *args: object, **kwargs: object) -> object:
        below = inspect.getattr_static(type(self), _NAME) is not generate
        with below_own_generate(below):
            return _methods[0](self, *args, **kwargs)

    generate.pygen_original = vars(target).get(_NAME, MISSING)  # type: ignore[attr-defined]
    generate.patches = 0  # type: ignore[attr-defined]
    assert _is_stand_in(generate)
    return generate


def _put(target: object, value: object) -> None:
    """Sets `generate` in `vars(target)`, or deletes it if `value` is MISSING."""
    if isinstance(target, type):
        delattr(target, _NAME) if value is MISSING else setattr(target, _NAME, value)
    elif value is MISSING:
        del vars(target)[_NAME]
    else:
        vars(target)[_NAME] = value


def _is_stand_in(value: object) -> TypeGuard[_StandIn]:
    return hasattr(value, "pygen_original")


def _described(target: object) -> str:
    return target.__qualname__ if isinstance(target, type) else f"a {type(target).__qualname__}"
