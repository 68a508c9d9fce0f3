"""The settings of the two watermarks that `generate()` can write into a text."""

from __future__ import annotations

import copy
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from pygen.config.rules import BOOLEAN, check_fields
from pygen.rules import Rule, integer, number, one_of, shown

Processor = Any  # a logits processor: this module is below theirs

# A step takes time for every key and every id of a context, and keeps a history for every row.
_MOST_KEYS, _LONGEST_NGRAM, _LONGEST_HISTORY = 1024, 1024, 2**20
_KEYS = Rule(
    f"a non-empty list of 64-bit integers, at most {_MOST_KEYS}",
    lambda value: (
        isinstance(value, (list, tuple)) and 0 < len(value) <= _MOST_KEYS and all(map(integer().accepts, value))
    ),
)


@dataclass
class BaseWatermarkingConfig(ABC):
    """What both watermarks share: checks on every change, dict and JSON forms.

    Raises `ValueError` naming field, value and range at construction, in `update` and in `validate`; a refused
    `update` changes nothing.
    """

    _rules: ClassVar[Mapping[str, Rule]]
    _json_order: ClassVar[tuple[str, ...]] = ()
    # `pygen.processors` enters its class here; it takes its rules from this module.
    _processor_class: ClassVar[Callable[..., Processor]]

    def __post_init__(self) -> None:
        self.validate()

    @abstractmethod
    def validate(self) -> None:
        """Raise `ValueError` for the first field of a wrong type or out of range."""

    @abstractmethod
    def construct_processor(self, vocab_size: int, device: str | torch.device) -> Processor:
        """A new logits processor that writes this watermark into one generation."""

    @classmethod
    def from_dict(cls, config_dict: Mapping[str, Any], **kwargs: Any) -> BaseWatermarkingConfig:
        """Build from a dict of fields; those of `kwargs` that are fields win, the others are ignored."""
        if unknown := [name for name in config_dict if name not in cls._rules]:
            raise ValueError(
                f"`watermarking_config.{unknown[0]}` is no field of {cls.__name__} ({', '.join(cls._rules)}), "
                f"got {shown(config_dict[unknown[0]])}"
            )
        values = {**config_dict, **{name: value for name, value in kwargs.items() if name in cls._rules}}
        try:
            return cls(**values)
        except TypeError:
            missing = [name for name in ("ngram_len", "keys") if name in cls._rules and name not in values]
            raise ValueError(f"`watermarking_config` lacks {', '.join(missing)}, got {shown(values)}") from None

    def to_dict(self) -> dict[str, Any]:
        return {name: copy.deepcopy(getattr(self, name)) for name in self._json_order or self._rules}

    def to_json_string(self) -> str:
        return json.dumps(self.to_dict(), indent=2) + "\n"

    def to_json_file(self, json_file_path: str | os.PathLike[str]) -> None:
        text = json.dumps(self.to_dict(), indent=2, sort_keys=True) + "\n"
        with open(json_file_path, "w", encoding="utf-8") as file:
            file.write(text)

    def update(self, **kwargs: Any) -> None:
        """Set the fields named in `kwargs`; other names are ignored."""
        before = dict(vars(self))
        vars(self).update({name: value for name, value in kwargs.items() if name in self._rules})
        try:
            self.validate()
        except ValueError:
            vars(self).update(before)
            raise

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        yield from self.to_dict().items()


@dataclass
class WatermarkingConfig(BaseWatermarkingConfig):
    """Green-list watermark (Kirchenbauer et al., 2023, arXiv:2306.04634).

    `bias` is added to the scores of a pseudo-random `greenlist_ratio` of the vocabulary, seeded by `hashing_key` and
    the last `context_width` tokens ("lefthash") or the candidate token as well ("selfhash").
    """

    greenlist_ratio: float = 0.25
    bias: float = 2.0
    hashing_key: int = 15485863
    seeding_scheme: str = "lefthash"
    context_width: int = 1

    _rules: ClassVar[Mapping[str, Rule]] = {
        "greenlist_ratio": number("[0, 1]"),
        "bias": number(),
        "hashing_key": integer(),
        "seeding_scheme": one_of("lefthash", "selfhash"),
        "context_width": integer(1),
    }

    def validate(self) -> None:
        check_fields("watermarking_config", vars(self), self._rules)

    def construct_processor(self, vocab_size: int, device: str | torch.device) -> Processor:
        return self._processor_class(vocab_size=vocab_size, device=device, **self.to_dict())


@dataclass
class SynthIDTextWatermarkingConfig(BaseWatermarkingConfig):
    """SynthID-Text watermark (Dathathri et al., Nature 634, 2024): tournament sampling with one layer per key.

    `ngram_len` tokens seed each draw; `keys` has one entry per layer; the other fields size the hash table and the
    memory of contexts already watermarked.
    """

    ngram_len: int
    keys: list[int]
    context_history_size: int = 1024
    sampling_table_seed: int = 0
    sampling_table_size: int = 2**16
    skip_first_ngram_calls: bool = False
    debug_mode: bool = False

    _rules: ClassVar[Mapping[str, Rule]] = {
        "ngram_len": integer(1, _LONGEST_NGRAM),
        "keys": _KEYS,
        "context_history_size": integer(1, _LONGEST_HISTORY),
        "sampling_table_seed": integer(),
        "sampling_table_size": integer(1, 2**24),
        "skip_first_ngram_calls": BOOLEAN,
        "debug_mode": BOOLEAN,
    }
    # transformers writes the table size before its seed
    _json_order: ClassVar[tuple[str, ...]] = (
        "ngram_len",
        "keys",
        "sampling_table_size",
        "sampling_table_seed",
        "context_history_size",
        "skip_first_ngram_calls",
        "debug_mode",
    )

    def validate(self) -> None:
        check_fields("watermarking_config", vars(self), self._rules)

    def construct_processor(self, vocab_size: int, device: str | torch.device) -> Processor:
        return self._processor_class(device=device, **self.to_dict())


def watermarking_config_from(value: Any) -> Any:
    """A dict, or transformers' object of the same name, as the config class that has its fields; others unchanged."""
    if isinstance(value, BaseWatermarkingConfig):
        return value
    foreign = {"WatermarkingConfig", "SynthIDTextWatermarkingConfig"} & {base.__name__ for base in type(value).__mro__}
    fields = value.to_dict() if foreign else value
    if not isinstance(fields, dict):
        return value
    is_synthid = bool({"ngram_len", "keys"} & fields.keys())
    return (SynthIDTextWatermarkingConfig if is_synthid else WatermarkingConfig).from_dict(fields)
