"""The differences between releases of transformers: names of arguments, helpers and orders; and the tested releases.

Other modules read them here. Signatures show names, and the existence of helpers shows these; only the release number
shows an order. Functions import transformers where they need it; importing this module does not.
"""

from __future__ import annotations

import functools
import inspect
import logging
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

from torch import nn

from pygen.models.protocols import TransformersModel

logger = logging.getLogger(__name__)

# The whole test suite runs with these releases; docs/versions.md lists other runs.
OLDEST_TESTED, NEWEST_TESTED = "5.6.1", "5.24.0"

# The names of a cache in calls, forwards and outputs. Up to 5.23 `past_key_values`, and `cache_params` for Mamba.
CACHE_NAMES = ("past_key_values", "cache_params", "cache")
# The field of an output that may have the cache, and the argument of the next forward that takes it.
_RETURNED_BEFORE_5_24 = {
    "past_key_values": "past_key_values",
    "cache_params": "cache_params",
    "state": "state",
    "mems": "past_key_values",
    "past_buckets_states": "past_key_values",
}
_RETURNED = {name: name for name in ("cache", "state", "mems", "past_buckets_states")}


def given_cache(kwargs: Mapping[str, object]) -> Any:
    """The cache among the arguments of a call or a forward, under any of its names; None without one."""
    name = given_cache_name(kwargs)
    return None if name is None else kwargs[name]


def given_cache_name(kwargs: Mapping[str, object]) -> str | None:
    """The name of the cache among the arguments. ValueError for two of them."""
    names = [name for name in CACHE_NAMES if kwargs.get(name) is not None]
    if len(names) > 1:
        raise ValueError(f"`{names[0]}` and `{names[1]}` are two names of one argument, got both")
    return names[0] if names else None


def rename_cache(kwargs: Mapping[str, object], name: str) -> dict[str, Any]:
    """A copy of `kwargs` with the cache under `name`. ValueError for two caches."""
    cache = given_cache(kwargs)
    return without_cache(kwargs) if cache is None else {**without_cache(kwargs), name: cache}


def without_cache(kwargs: Mapping[str, object]) -> dict[str, Any]:
    """A copy of `kwargs` without a cache under any name."""
    return {name: value for name, value in kwargs.items() if name not in CACHE_NAMES}


def cache_parameter(names: Collection[str]) -> str | None:
    """The name of the parameter for a cache among `names`, or None."""
    return next((name for name in CACHE_NAMES if name in names), None)


def output_cache(outputs: object) -> Any:
    """The cache in the output of a forward, by key or else by attribute; None without one."""
    if isinstance(outputs, Mapping):
        # With `in outputs`, a ModelOutput of 5.24 would warn about the older names.
        return next((outputs[name] for name in CACHE_NAMES if name in outputs.keys()), None)  # noqa: SIM118
    caches = (getattr(outputs, name, None) for name in CACHE_NAMES)
    return next((cache for cache in caches if cache is not None), None)


class HookNames:
    """The names of a cache in the hooks and the forward of one model of transformers.

    argument: the name in `prepare_inputs_for_generation`, and in the arguments that hooks pass to each other.
    returned: the fields of an output that may have the cache, each with the argument that takes it.
    """

    def __init__(self, model: nn.Module) -> None:
        self._forward = cache_parameter(inspect.signature(model.forward).parameters)
        if _hooks_say_cache():
            self.argument, self.returned = "cache", _RETURNED
        else:
            self.argument = "cache_params" if self._forward == "cache_params" else "past_key_values"
            self.returned = _RETURNED_BEFORE_5_24
        self.arguments = tuple(dict.fromkeys((self.argument, *self.returned.values())))

    def for_forward(self, inputs: dict[str, object]) -> dict[str, object]:
        """`inputs` from the hooks, with the cache under its name in the forward.

        A class for an older release takes `past_key_values`, and newer hooks make `cache`.
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
    """The version of the installed transformers."""
    from transformers import __version__

    return str(__version__)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version)[:3])


@functools.cache
def warn_unless_tested() -> None:
    """Logs one warning if the installed release isn't between the oldest and the newest tested one."""
    if not _numbers(OLDEST_TESTED) <= _numbers(release()) <= _numbers(NEWEST_TESTED):
        logger.warning(
            "pygen was tested with transformers %s to %s, and %s is installed.",
            OLDEST_TESTED,
            NEWEST_TESTED,
            release(),
        )


def sorts_drawn_beams() -> bool:
    """Whether beam sampling sorts its drawn candidates, as transformers does from 5.24 on."""
    return _numbers(release()) >= (5, 24)


def quantizers() -> dict[str, tuple[str, str] | None]:
    """The backends of quantized caches, each with the module and the package that it needs; None if torch is enough."""
    from transformers import cache_utils

    backends: dict[str, tuple[str, str] | None]
    backends = {"quanto": ("optimum.quanto", "optimum-quanto"), "hqq": ("hqq", "hqq")}
    if hasattr(cache_utils, "Fp8QuantizedLayer"):  # from 5.21 on
        backends["fp8"] = None
    return backends


def encoder_hook(model: TransformersModel) -> Callable[..., dict[str, Any]]:
    """The hook that runs a model's encoders, if it has any: (inputs_tensor, model_kwargs, model_input_name,
    generation_config) -> model_kwargs."""
    hook: Callable[..., dict[str, Any]] | None = getattr(model, "_maybe_prepare_encoder_kwargs_for_generation", None)
    if hook is None and model.config.is_encoder_decoder:
        hook = model._prepare_encoder_decoder_kwargs_for_generation
    if hook is not None:
        return hook
    return lambda inputs_tensor, model_kwargs, model_input_name, generation_config: model_kwargs
