"""Which processors an op can stand for: instances of exactly the known classes, pygen's or transformers'."""

from __future__ import annotations

import math
from typing import Any

from pygen.knobs import KNOBS, Stage
from pygen.rules import plain

_MODULES = ("pygen.processors.", "transformers.generation.logits_process")


def known_class(processor: object) -> str:
    """The name that its class has in transformers, or "" for an instance of any other class."""
    kind = type(processor)
    return kind.__name__ if kind.__module__.startswith(_MODULES) else ""


def keeps_nothing(processor: Any) -> bool:
    """Whether calls of it cannot influence each other, as far as its class tells."""
    name = known_class(processor)
    if name == "LogitsProcessorList":
        return all(keeps_nothing(one) for one in processor)
    return name != "" and name not in _STATEFUL


def keeps_rows(processor: object) -> bool:
    """Whether it is one of transformers' that keep something by row, and cannot learn that rows have moved."""
    return known_class(processor) in _STATEFUL and not type(processor).__module__.startswith("pygen.")


def knobs_of(processor: Any, *, samples: bool) -> dict[str, Any]:
    """Arguments of `ops.process_logits` that do the same; empty where none do.

    samples: whether every row is sampled; greedy rows pass an op's warpers untouched.
    """
    name = known_class(processor)
    if name == "SuppressTokensLogitsProcessor":
        return {"suppress": tuple(processor.suppress_tokens.tolist())}
    if name not in _KNOBS or not _is_zero(getattr(processor, "prompt_ignore_length", None)):
        return {}
    knob = _KNOBS[name]
    if knob.stage >= Stage.TEMPERATURE and (not samples or getattr(processor, "filter_value", -math.inf) != -math.inf):
        return {}
    knobs = {knob.name: plain(getattr(processor, knob.attribute))}
    keep = getattr(processor, "min_tokens_to_keep", None)
    if keep is not None:
        if keep < 1:
            return {}
        knobs["min_tokens_to_keep"] = keep
    return knobs


def _is_zero(length: object) -> bool:
    return length is None or (isinstance(length, int) and length == 0)


_STATEFUL = ("SynthIDTextWatermarkLogitsProcessor", "UnbatchedClassifierFreeGuidanceLogitsProcessor")
_KNOBS = {knob.processor: knob for knob in KNOBS if knob.processor}
