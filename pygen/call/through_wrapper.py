"""Calls of a wrapper with its own `generate`, peft's for example: the wrapper prepares the call of its base model."""

from __future__ import annotations

import functools
import inspect
import threading
import weakref
from collections.abc import Callable
from typing import Any, TypeVar, cast

from torch import nn

from pygen.models.own_generate import unpatched
from pygen.models.patches import put_generate
from pygen.models.sharding import with_root_weights
from pygen.models.wrappers import base_of, called, unwrapped, without_compiling
from pygen.streamers.borrowed import borrowed

Function = TypeVar("Function", bound=Callable[..., object])

_NAME = "generate"
_locks: weakref.WeakKeyDictionary[nn.Module, threading.RLock] = weakref.WeakKeyDictionary()
_choosing = threading.Lock()


def through_own_generate(function: Function) -> Function:
    """Decorates `generate`: where a wrapper has its own `generate`, that runs, and calls pygen's for its base model."""

    @functools.wraps(function)
    def through(model: nn.Module, inputs: object = None, generation_config: object = None, **kwargs: Any) -> object:
        wrapper = unwrapped(model)
        base = base_of(wrapper)
        if base is None:
            return function(called(model), inputs, generation_config, **kwargs)
        if kwargs.get("streamer") is not None:
            kwargs["streamer"] = borrowed(kwargs["streamer"])
        if generation_config is not None:
            kwargs["generation_config"] = generation_config
        if inputs is not None:
            # Some wrappers take keywords only, and look for the prompt under its name.
            name = getattr(base, "main_input_name", "input_ids")
            kwargs["inputs" if name in kwargs else name] = inputs
        # Wrappers put hooks on the base during a call, and these must not act on another thread's call.
        with _lock_of(base), put_generate(base):
            return with_root_weights(without_compiling(model), functools.partial(_own_generate(wrapper), **kwargs))

    return cast(Function, through)


def _lock_of(base: nn.Module) -> threading.RLock:
    """The lock that one thread holds during its calls of `base`, nested ones included."""
    with _choosing:
        return _locks.setdefault(base, threading.RLock())


def _own_generate(wrapper: nn.Module) -> Callable[..., object]:
    """`wrapper.generate`, as if `pygen.patch` had not changed the class."""
    if hasattr(inspect.getattr_static(wrapper, _NAME, None), "pygen_original"):
        bound: Callable[..., object] = unpatched(type(wrapper), _NAME).__get__(wrapper)
        return bound
    own: Callable[..., object] = getattr(wrapper, _NAME)
    return own
