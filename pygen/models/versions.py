"""What differs between the releases of transformers: names of arguments, helpers, orders, and which are tested.

Everything else asks here. Names are read from signatures and helpers by whether they exist; an order that nothing shows
goes by the release. transformers is imported by the functions that need it, and not with this module.
"""

from __future__ import annotations

import functools
import inspect
import logging
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

logger = logging.getLogger(__name__)

# The releases that the whole test suite runs with; docs/versions.md tells what else was run.
OLDEST_TESTED, NEWEST_TESTED = "5.6.1", "5.24.0"

# What callers, forwards and outputs call a cache. Up to 5.23 `past_key_values`, and `cache_params` for Mamba.
CACHE_NAMES = ("past_key_values", "cache_params", "cache")
# Where the output of a model of transformers may carry its cache, and the argument that takes it back.
_RETURNED_BEFORE_5_24 = {
    "past_key_values": "past_key_values",
    "cache_params": "cache_params",
    "state": "state",
    "mems": "past_key_values",
    "past_buckets_states": "past_key_values",
}
_RETURNED = {name: name for name in ("cache", "state", "mems", "past_buckets_states")}


def given_cache(kwargs: Mapping[str, Any]) -> Any:
    """The cache among the arguments of a call or a forward, whatever its name; None without one."""
    name = given_cache_name(kwargs)
    return None if name is None else kwargs[name]


def given_cache_name(kwargs: Mapping[str, Any]) -> str | None:
    """The name of the cache among the arguments. ValueError where there are two."""
    names = [name for name in CACHE_NAMES if kwargs.get(name) is not None]
    if len(names) > 1:
        raise ValueError(f"`{names[0]}` and `{names[1]}` are two names of one argument, got both")
    return names[0] if names else None


def rename_cache(kwargs: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A copy of `kwargs` with the cache as `name`. ValueError where there are two."""
    cache = given_cache(kwargs)
    return without_cache(kwargs) if cache is None else {**without_cache(kwargs), name: cache}


def without_cache(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of `kwargs` with no cache under any name."""
    return {name: value for name, value in kwargs.items() if name not in CACHE_NAMES}


def cache_parameter(names: Collection[str]) -> str | None:
    """The one of a function's parameters that takes a cache, or None."""
    return next((name for name in CACHE_NAMES if name in names), None)


def output_cache(outputs: Any) -> Any:
    """The cache in the output of a forward, by key or else by attribute; None without one."""
    if isinstance(outputs, Mapping):
        # Asked with `in`, a ModelOutput of 5.24 would warn about the older names.
        return next((outputs[name] for name in CACHE_NAMES if name in outputs.keys()), None)  # noqa: SIM118
    caches = (getattr(outputs, name, None) for name in CACHE_NAMES)
    return next((cache for cache in caches if cache is not None), None)


class HookNames:
    """The names that the hooks and the forward of one model of transformers give a cache.

    argument: of `prepare_inputs_for_generation`, and of the arguments that the hooks hand to each other.
    returned: where an output may carry a cache, and the argument that takes it back.
    """

    def __init__(self, model: Any) -> None:
        self._forward = cache_parameter(inspect.signature(model.forward).parameters)
        if _hooks_say_cache():
            self.argument, self.returned = "cache", _RETURNED
        else:
            self.argument = "cache_params" if self._forward == "cache_params" else "past_key_values"
            self.returned = _RETURNED_BEFORE_5_24
        self.arguments = tuple(dict.fromkeys((self.argument, *self.returned.values())))

    def for_forward(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """`inputs` as the hooks made them, with the cache under the name that the forward has.

        A class written for an older release takes `past_key_values`, where newer hooks say `cache`.
        """
        if self._forward not in (None, self.argument) and self.argument in inputs:
            inputs[self._forward] = inputs.pop(self.argument)
        return inputs


@functools.cache
def _hooks_say_cache() -> bool:
    from transformers import GenerationMixin

    from pygen.models.own_generate import unpatched

    return "cache" in inspect.signature(unpatched(GenerationMixin, "prepare_inputs_for_generation")).parameters


def release() -> str:
    """Of the installed transformers."""
    from transformers import __version__

    return str(__version__)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version)[:3])


@functools.cache
def warn_unless_tested() -> None:
    """Says once that the installed release is outside of those that pygen was tested with."""
    if not _numbers(OLDEST_TESTED) <= _numbers(release()) <= _numbers(NEWEST_TESTED):
        logger.warning(
            "pygen was tested with transformers %s to %s, and %s is installed.",
            OLDEST_TESTED,
            NEWEST_TESTED,
            release(),
        )


def sorts_drawn_beams() -> bool:
    """Whether beam sampling sorts the candidates that it has drawn, as it does from 5.24 on."""
    return _numbers(release()) >= (5, 24)


def quantizers() -> dict[str, tuple[str, str] | None]:
    """The backends of quantized caches, each with the module and the package that it needs; None where torch does."""
    from transformers import cache_utils

    backends: dict[str, tuple[str, str] | None]
    backends = {"quanto": ("optimum.quanto", "optimum-quanto"), "hqq": ("hqq", "hqq")}
    if hasattr(cache_utils, "Fp8QuantizedLayer"):  # from 5.21 on
        backends["fp8"] = None
    return backends


def encoder_hook(model: Any) -> Callable[..., dict[str, Any]]:
    """The hook that runs a model's encoders: (inputs_tensor, model_kwargs, model_input_name, generation_config) ->
    model_kwargs. It does nothing for a model without."""
    hook: Callable[..., dict[str, Any]] | None = getattr(model, "_maybe_prepare_encoder_kwargs_for_generation", None)
    if hook is None and model.config.is_encoder_decoder:
        hook = model._prepare_encoder_decoder_kwargs_for_generation
    if hook is not None:
        return hook
    return lambda inputs_tensor, model_kwargs, model_input_name, generation_config: model_kwargs
