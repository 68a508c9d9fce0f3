"""Which processors an op can stand for: instances of exactly the known classes, pygen's or transformers'."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

_MODULES = ("pygen.processors.", "transformers.generation.logits_process")


def known_class(processor: Any) -> str:
    """The name that its class has in transformers, or "" for an instance of any other class."""
    kind = type(processor)
    return kind.__name__ if kind.__module__.startswith(_MODULES) else ""


def keeps_nothing(processor: Any) -> bool:
    """Whether calls of it cannot influence each other, as far as its class tells."""
    name = known_class(processor)
    if name == "LogitsProcessorList":
        return all(keeps_nothing(one) for one in processor)
    return name != "" and name not in _STATEFUL


def keeps_rows(processor: Any) -> bool:
    """Whether it is one of transformers' that keep something by row, and cannot learn that rows have moved."""
    return known_class(processor) in _STATEFUL and not type(processor).__module__.startswith("pygen.")


def knobs_of(processor: Any, *, samples: bool) -> dict[str, Any]:
    """Arguments of `ops.process_logits` that do the same; empty where none do.

    samples: whether every row is sampled; greedy rows pass an op's warpers untouched.
    """
    name = known_class(processor)
    if name in _PENALTIES:
        return _PENALTIES[name](processor)
    if name not in _WARPERS or not samples or getattr(processor, "filter_value", -math.inf) != -math.inf:
        return {}
    knob, attribute = _WARPERS[name]
    knobs = {knob: getattr(processor, attribute)}
    if name == "EtaLogitsWarper":
        knobs = {knob: float(processor.epsilon)}
    keep = getattr(processor, "min_tokens_to_keep", None)
    if keep is not None:
        if keep < 1:
            return {}
        knobs["min_tokens_to_keep"] = keep
    return knobs


def _is_zero(length: Any) -> bool:
    return length is None or (isinstance(length, int) and length == 0)


_STATEFUL = ("SynthIDTextWatermarkLogitsProcessor", "UnbatchedClassifierFreeGuidanceLogitsProcessor")
_WARPERS = {
    "TemperatureLogitsWarper": ("temperature", "temperature"),
    "TopHLogitsWarper": ("top_h", "top_h"),
    "TopKLogitsWarper": ("top_k", "top_k"),
    "TopPLogitsWarper": ("top_p", "top_p"),
    "MinPLogitsWarper": ("min_p", "min_p"),
    "TypicalLogitsWarper": ("typical_p", "mass"),
    "EpsilonLogitsWarper": ("epsilon_cutoff", "epsilon"),
    "EtaLogitsWarper": ("eta_cutoff", "epsilon"),
}
_PENALTIES: dict[str, Callable[[Any], dict[str, Any]]] = {
    "RepetitionPenaltyLogitsProcessor": lambda p: (
        {"repetition_penalty": p.penalty} if _is_zero(p.prompt_ignore_length) else {}
    ),
    "NoRepeatNGramLogitsProcessor": lambda p: {"no_repeat_ngram_size": p.ngram_size},
    "SuppressTokensLogitsProcessor": lambda p: {"suppress": tuple(p.suppress_tokens.tolist())},
}
