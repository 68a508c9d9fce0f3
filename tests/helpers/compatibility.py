"""docs/compatibility.md as data: its tables, and the public names of transformers with pygen's counterparts."""

from __future__ import annotations

import functools
import importlib
import re
from pathlib import Path
from typing import Any, NamedTuple

import transformers.generation

ROOT = Path(__file__).resolve().parents[2]
PUBLIC_NAMES = tuple(sorted(vars(transformers.generation)["_class_to_module"]))

_CONTINUOUS_BATCHING = "pygen's continuous batching is `pygen.generate_batch` and `pygen.Engine`"
_ONE_MODEL = "bound to one model"

# Names that came after the oldest supported release.
LATER_NAMES = ("DFlashTokenCandidateGenerator", "TextDiffusionStreamer")

# The names that pygen omits on purpose, with the document's reasons.
NOT_OFFERED = {
    "ContinuousBatchingConfig": _CONTINUOUS_BATCHING,
    "ContinuousBatchingManager": _CONTINUOUS_BATCHING,
    "ContinuousMixin": _CONTINUOUS_BATCHING,
    "FIFOScheduler": _CONTINUOUS_BATCHING,
    "PrefillFirstScheduler": _CONTINUOUS_BATCHING,
    "Scheduler": _CONTINUOUS_BATCHING,
    "WhisperTimeStampLogitsProcessor": _ONE_MODEL,
    "BarkEosPrioritizerLogitsProcessor": _ONE_MODEL,
    "DiaClassifierFreeGuidanceLogitsProcessor": _ONE_MODEL,
    "DiaEOSChannelFilterLogitsProcessor": _ONE_MODEL,
    "DiaEOSDelayPatternLogitsProcessor": _ONE_MODEL,
    "WhisperNoSpeechDetection": _ONE_MODEL,
    "DFlashTokenCandidateGenerator": (
        "drafts of one kind of assistant that reads the model's hidden states; since 5.15"
    ),
    "TextDiffusionStreamer": "for models that revise a text instead of appending to it; since 5.11",
    "LOGITS_PROCESSOR_INPUTS_DOCSTRING": "a text for transformers' own documentation",
}


class Name(NamedTuple):
    """A row of the tables of names. `place` is pygen's qualified name, as `pygen.processors.LogitsProcessor`."""

    name: str
    place: str
    state: str
    note: str

    def ours(self) -> Any:
        module, _, name = self.place.rpartition(".")
        return getattr(importlib.import_module(module), name)


@functools.cache
def tables() -> dict[str, list[list[str]]]:
    """Returns the rows of every table, keyed by the first header cell. Cells lose the backticks around them."""
    text = (ROOT / "docs" / "compatibility.md").read_text(encoding="utf-8")
    result: dict[str, list[list[str]]] = {}
    for block in re.findall(r"(?:^\|.*\|\n)+", text, re.MULTILINE):
        head, _, *rows = ([cell.strip() for cell in line[1:-1].split("|")] for line in block.splitlines())
        result[head[0]] = [[re.sub(r"^`([^`]*)`$", r"\1", cell) for cell in row] for row in rows]
    return result


def names() -> list[Name]:
    return [Name(*row) for row in (*tables()["transformers.generation"], *tables()["logits_process"])]
