"""Wrappers around a model: finds the module whose forward runs, the one with the hooks, and the base of a wrapper.

Four kinds of wrappers:

    training only      DistributedDataParallel, ...        inference calls the module inside
    passed through     torch.compile, FSDP                 inference calls the wrapper, and uses the hooks of the model
                                                           inside
    own `generate`     peft's models, trl's value heads    their `generate` calls that of their base; inference skips
                                                           wrappers around them
    anything else      a plain module
"""

from __future__ import annotations

from typing import Any

from torch import nn

# Wrapper classes and the attribute with their module. Names need no import: few processes have any of the packages.
_FOR_TRAINING = {
    "DistributedDataParallel": "module",
    "DataParallel": "module",
    "AveragedModel": "module",
    "DeepSpeedEngine": "module",
}
_COMPILED = {"OptimizedModule": "_orig_mod"}
_PASSED_THROUGH = _COMPILED | {"FullyShardedDataParallel": "module"}
_PACKAGES = ("torch", "deepspeed")
# The attributes of wrappers with their own `generate` that lead to the model.
_FIRST = ("base_model", "pretrained_model")
_NEXT = (*_FIRST, "lora_model", "model")


def mixin_of(model: object) -> str | None:
    """The package whose `GenerationMixin` the class of `model` inherits: "transformers", "pygen", or None."""
    for base in type(model).__mro__:
        package = base.__module__.partition(".")[0]
        if base.__name__ == "GenerationMixin" and (package == "transformers" or base.__module__ == "pygen.mixin"):
            return package
    return None


def called(model: nn.Module) -> nn.Module:
    """The part of `model` whose forward a decoding loop calls."""
    base = base_of(unwrapped(model))
    return _without(model, _FOR_TRAINING) if base is None else base


def inner(model: nn.Module) -> Any:
    """The model inside all wrappers, with the hooks and settings."""
    model = unwrapped(model)
    base = base_of(model)
    return model if base is None else inner(base)


def unwrapped(model: nn.Module) -> nn.Module:
    """`model` without training wrappers, torch.compile and FSDP; a wrapper with its own `generate` stays."""
    return _without(model, _FOR_TRAINING | _PASSED_THROUGH)


def without_compiling(model: nn.Module) -> nn.Module:
    """`model` without training wrappers and torch.compile; FSDP stays."""
    return _without(model, _FOR_TRAINING | _COMPILED)


def base_of(wrapper: object) -> nn.Module | None:
    """The generation model inside a wrapper with its own `generate`; None for any other `wrapper`."""
    if not isinstance(wrapper, nn.Module) or mixin_of(wrapper) is not None:
        return None
    found = next((wrapper._modules[name] for name in _FIRST if name in wrapper._modules), None)
    if found is None or not callable(getattr(wrapper, "generate", None)):
        return None
    while found is not None and mixin_of(unwrapped(found)) is None:
        found = next((found._modules[name] for name in _NEXT if name in found._modules), None)
    return found


def _without(model: nn.Module, kinds: dict[str, str]) -> nn.Module:
    while (attribute := _attribute_of(model, kinds)) is not None:
        model = getattr(model, attribute)
    return model


def _attribute_of(model: object, kinds: dict[str, str]) -> str | None:
    for base in type(model).__mro__:
        if base.__name__ in kinds and base.__module__.partition(".")[0] in _PACKAGES:
            return kinds[base.__name__]
    return None
