"""`patch`: puts pygen's `generate` in the place of a model's or a class's own, until it is undone."""

from __future__ import annotations

import copy
import functools
import inspect
import threading
from types import TracebackType
from typing import Any

from torch import nn

from pygen.mixin import GenerationMixin
from pygen.models.own_generate import MISSING, below_own_generate, unpatched
from pygen.models.wrappers import base_of

_NAME = "generate"
_counting = threading.Lock()


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


def patch(model: Any) -> Patch:
    """Makes `model.generate(...)` pygen's, with transformers' parameters, also by position.

    model: a model, or a class of models (`LlamaForCausalLM`; `transformers.GenerationMixin` is all of them), whose
        instances and subclasses follow unless they have a `generate` of their own. A method `generate` of a model class
        that calls `super().generate(...)` stays in force when a base of that class is patched. A wrapper with a
        `generate` of its own, as peft's models, keeps it: the model inside is patched, which it calls.

    ```
    with pygen.patch(model):
        model.generate(**inputs, max_new_tokens=20)

    patched = pygen.patch(LlamaForCausalLM)
    patched.undo()
    ```

    A target may be patched several times and stays patched until all of its patches are undone; nothing is left behind
    then. Copies and pickles of a patched model are patched too, and `pygen.patch(copy).undo()` takes that off.

    TypeError for anything but a module, a class of modules, or a `GenerationMixin`. NotImplementedError for a model of
    transformers with a `generate` of its own, as Whisper has, which would be lost: patch a base of its class.
    """
    base = base_of(model)
    target = model if base is None else base
    _check(target)
    return put_generate(target)


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
    __doc__ = GenerationMixin.generate.__doc__

    def __init__(self, model: Any, pygen_original: Any = MISSING) -> None:
        self._model = model
        self.pygen_original = pygen_original
        self.patches = 0
        signature = inspect.signature(GenerationMixin.generate)
        self.__signature__ = signature.replace(parameters=list(signature.parameters.values())[1:])

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return GenerationMixin.generate(self._model, *args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> _OfInstance:
        return _OfInstance(*(copy.deepcopy(argument, memo) for argument in self._arguments()))

    def __reduce__(self) -> tuple[Any, ...]:
        return _OfInstance, self._arguments()

    def _arguments(self) -> tuple[Any, ...]:
        return (self._model,) if self.pygen_original is MISSING else (self._model, self.pygen_original)


def _of_class(target: type) -> Any:
    """`generate` of the instances of a patched class, with the attributes of `_OfInstance`."""

    @functools.wraps(GenerationMixin.generate)
    def generate(self: Any, *args: Any, **kwargs: Any) -> Any:
        below = inspect.getattr_static(type(self), _NAME) is not generate
        with below_own_generate(below):
            return GenerationMixin.generate(self, *args, **kwargs)

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


def _check(target: Any) -> None:
    kind = target if isinstance(target, type) else type(target)
    if not issubclass(kind, nn.Module) and not any(base.__name__ == "GenerationMixin" for base in kind.__mro__):
        raise TypeError(f"`model` must be a torch.nn.Module or a class of them, got {target!r:.80}")
    mixin = next((base for base in kind.__mro__ if base.__module__ == "transformers.generation.utils"), kind)
    if unpatched(kind, _NAME) is not unpatched(mixin, _NAME):
        raise NotImplementedError(
            f"`model`={kind.__name__}: its own `generate` would be lost; patch a base of its class, for example "
            f"transformers.GenerationMixin"
        )


def _described(target: Any) -> str:
    return target.__qualname__ if isinstance(target, type) else f"a {type(target).__qualname__}"
