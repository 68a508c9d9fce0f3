"""The types of values in a config, and the conversion of a setting to the form that is stored."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from pygen.config.rules import EXTENSION_RULES, RULES
from pygen.config.watermark import watermarking_config_from
from pygen.rules import plain


class GenerationMode(str, Enum):
    """The modes of `generate()`."""

    CONTRASTIVE_SEARCH = "contrastive_search"
    GREEDY_SEARCH = "greedy_search"
    SAMPLE = "sample"
    ASSISTED_GENERATION = "assisted_generation"
    DOLA_GENERATION = "dola_generation"
    BEAM_SEARCH = "beam_search"
    BEAM_SAMPLE = "beam_sample"
    CONSTRAINED_BEAM_SEARCH = "constrained_beam_search"
    GROUP_BEAM_SEARCH = "group_beam_search"

    @classmethod
    def _missing_(cls, value: object) -> GenerationMode:
        raise ValueError(f"{value!r} is no {cls.__name__}; choose one of {[mode.value for mode in cls]}")


@dataclass
class CompileConfig:
    """Arguments for `torch.compile`, used where `generate()` compiles the forward pass."""

    fullgraph: bool = False
    dynamic: bool | None = None
    backend: str | Callable[..., object] = "inductor"
    mode: str = "reduce-overhead"
    options: dict[str, object] | None = None
    # Not an argument: a switch for tests, to compile on devices that pygen would not compile on.
    _compile_all_devices: bool | None = field(default=None, init=False, repr=False, compare=False)

    def to_dict(self) -> dict[str, object]:
        return copy.deepcopy({name: value for name, value in vars(self).items() if name != "_compile_all_devices"})


def normalised(name: str, value: Any) -> Any:
    """The stored form of a setting: Python numbers for tensors, config objects for dicts and transformers' objects."""
    if value is None:
        return None
    if name == "watermarking_config":
        return watermarking_config_from(value)
    if name == "compile_config" and not isinstance(value, CompileConfig) and type(value).__name__ == "CompileConfig":
        result = CompileConfig(**value.to_dict())
        result._compile_all_devices = value._compile_all_devices
        return result
    if name == "sequence_bias" and isinstance(value, dict):
        return {_ids_from_text(ids): bias for ids, bias in value.items()}
    return plain(value) if name in RULES or name in EXTENSION_RULES else value


def _ids_from_text(key: object) -> object:
    """JSON has no tuple keys: a saved `sequence_bias` holds "(1, 2)", which is (1, 2) again when read."""
    if isinstance(key, str) and re.fullmatch(r"\(\d{1,19}(, \d{1,19})*,?\)", key, re.ASCII):
        return tuple(map(int, re.findall(r"\d+", key)))
    return key
