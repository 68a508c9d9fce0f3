"""What may be around a model, and which part of it is called, has the hooks, or has the `generate` to go through.

Four kinds of wrappers:

    training only      DistributedDataParallel, ...        inference needs nothing of them; their module is called
    passed through     torch.compile, FSDP                 they are called, the hooks are those of the model inside
    own `generate`     peft's models, trl's value heads    their `generate` is called, which calls that of its base;
                                                           what is around them is left out
    anything else      a plain module
"""

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
from pygen.streamers.borrowed import borrowed

_turns: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()
_choosing = threading.Lock()

Function = TypeVar("Function", bound=Callable[..., Any])

# Wrapper class, with where it keeps its module. They are named rather than imported: most processes have none of them.
_FOR_TRAINING = {
    "DistributedDataParallel": "module",
    "DataParallel": "module",
    "AveragedModel": "module",
    "DeepSpeedEngine": "module",
}
_COMPILED = {"OptimizedModule": "_orig_mod"}
_PASSED_THROUGH = _COMPILED | {"FullyShardedDataParallel": "module"}
_PACKAGES = ("torch", "deepspeed")
# Where wrappers with a `generate` of their own keep the next module on the way to the model.
_HELD_AS = ("base_model", "pretrained_model")
_ON_THE_WAY = (*_HELD_AS, "lora_model", "model")


def mixin_of(model: Any) -> str | None:
    """Whose `GenerationMixin` the class of `model` has: "transformers", "pygen", or None for neither."""
    for base in type(model).__mro__:
        package = base.__module__.partition(".")[0]
        if base.__name__ == "GenerationMixin" and (package == "transformers" or base.__module__ == "pygen.mixin"):
            return package
    return None


def called(model: Any) -> Any:
    """The part of `model` whose forward a loop calls."""
    base = base_of(_without(model, _FOR_TRAINING | _PASSED_THROUGH))
    return _without(model, _FOR_TRAINING) if base is None else base


def inner(model: Any) -> Any:
    """The model inside all wrappers, whose hooks and settings count."""
    model = _without(model, _FOR_TRAINING | _PASSED_THROUGH)
    base = base_of(model)
    return model if base is None else inner(base)


def base_of(wrapper: Any) -> Any:
    """The generation model that a wrapper with a `generate` of its own holds; None for any other `wrapper`."""
    if not isinstance(wrapper, nn.Module) or mixin_of(wrapper) is not None:
        return None
    held = next((wrapper._modules[name] for name in _HELD_AS if name in wrapper._modules), None)
    if held is None or not callable(getattr(wrapper, "generate", None)):
        return None
    while held is not None and mixin_of(_without(held, _FOR_TRAINING | _PASSED_THROUGH)) is None:
        held = next((held._modules[name] for name in _ON_THE_WAY if name in held._modules), None)
    return held


def _without(model: Any, kinds: dict[str, str]) -> Any:
    while (attribute := _attribute_of(model, kinds)) is not None:
        model = getattr(model, attribute)
    return model


def _attribute_of(model: Any, kinds: dict[str, str]) -> str | None:
    for base in type(model).__mro__:
        if base.__name__ in kinds and base.__module__.partition(".")[0] in _PACKAGES:
            return kinds[base.__name__]
    return None


def through_own_generate(function: Function) -> Function:
    """Decorates `generate`: a wrapper's own `generate` prepares the call and makes it, by pygen's of its base."""

    @functools.wraps(function)
    def through(model: Any, inputs: Any = None, generation_config: Any = None, **kwargs: Any) -> Any:
        wrapper = _without(model, _FOR_TRAINING | _PASSED_THROUGH)
        base = base_of(wrapper)
        if base is None:
            return function(called(model), inputs, generation_config, **kwargs)
        if kwargs.get("streamer") is not None:
            kwargs["streamer"] = borrowed(kwargs["streamer"])
        if generation_config is not None:
            kwargs["generation_config"] = generation_config
        if inputs is not None:
            # Some take keywords only, and look for the prompt under its name.
            name = "inputs" if base.main_input_name in kwargs else base.main_input_name
            kwargs[name] = inputs
        # Their hooks are on the base for the length of a call, where another thread's would meet them.
        with _turn_at(base), put_generate(base):
            return with_root_weights(
                _without(model, _FOR_TRAINING | _COMPILED), functools.partial(_own_generate(wrapper), **kwargs)
            )

    return cast(Function, through)


def _turn_at(base: Any) -> Any:
    """A lock that one thread holds for as many calls as it nests."""
    with _choosing:
        return _turns.setdefault(base, threading.RLock())


def _own_generate(wrapper: Any) -> Callable[..., Any]:
    """`wrapper.generate`, as if `pygen.patch` had not touched the class."""
    if hasattr(inspect.getattr_static(wrapper, "generate", None), "pygen_original"):
        bound: Callable[..., Any] = unpatched(type(wrapper), "generate").__get__(wrapper)
        return bound
    own: Callable[..., Any] = wrapper.generate
    return own
