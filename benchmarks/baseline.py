"""The settings of a benchmark row, and the work that transformers does for them at every step of `generate()`."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from transformers.generation import logits_process as hf

from pygen.knobs import FILTERS, NEUTRAL, WARPERS


@dataclasses.dataclass(frozen=True)
class Settings:
    """Knobs under their Hugging Face names; a neutral value is off. `history` is the number of ids to penalise."""

    do_sample: bool = True
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0
    epsilon_cutoff: float = 0.0
    eta_cutoff: float = 0.0
    top_h: float = 0.0
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    history: int = 256

    @property
    def active(self) -> dict[str, float]:
        knobs = {name: value for name, value in vars(self).items() if name in NEUTRAL}
        return {name: value for name, value in knobs.items() if value != NEUTRAL[name]}

    @property
    def unfiltered(self) -> Settings:
        """The same settings without the filters. Filters remove tokens and change no score."""
        off: dict[str, Any] = {knob.name: knob.neutral for knob in FILTERS if knob.name in vars(self)}
        return dataclasses.replace(self, **off)

    @property
    def needs_ids(self) -> bool:
        return "repetition_penalty" in self.active or "no_repeat_ngram_size" in self.active

    @property
    def label(self) -> str:
        words = [f"{name} {value:g}" for name, value in self.active.items()]
        if self.needs_ids:
            words.append(f"{self.history} ids")
        if not self.do_sample:
            words.insert(0, "greedy")
        return ", ".join(words) or "no filter"

    def pygen_knobs(self, input_ids: torch.Tensor | None) -> dict[str, Any]:
        knobs: dict[str, Any] = {"do_sample": self.do_sample, **self.active}
        if self.needs_ids:
            knobs["input_ids"] = input_ids
        return knobs

    def processors(self) -> hf.LogitsProcessorList:
        """The processors that `generate()` builds, in its order. Only sampling has warpers."""
        made: list[hf.LogitsProcessor] = []
        if self.repetition_penalty != 1.0:
            made.append(hf.RepetitionPenaltyLogitsProcessor(self.repetition_penalty))
        if self.no_repeat_ngram_size:
            made.append(hf.NoRepeatNGramLogitsProcessor(self.no_repeat_ngram_size))
        if self.do_sample:
            acting = [knob for knob in WARPERS if knob.name in self.active]
            made += [getattr(hf, knob.processor)(getattr(self, knob.name)) for knob in acting]
        return hf.LogitsProcessorList(made)


class TransformersStep:
    """Computes scores and tokens from logits as one step of transformers' `generate()` does.

    It takes a float32 copy, runs the processors, then softmax and multinomial, or argmax.
    """

    def __init__(self, settings: Settings, input_ids: torch.Tensor) -> None:
        self.settings = settings
        self.input_ids = input_ids
        self.processors: Any = settings.processors()

    def scores(self, logits: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.processors(self.input_ids, logits.to(copy=True, dtype=torch.float32))
        return scores

    def tokens(self, logits: torch.Tensor) -> torch.Tensor:
        scores = self.scores(logits)
        if not self.settings.do_sample:
            return scores.argmax(-1)
        return torch.multinomial(scores.softmax(-1), num_samples=1).squeeze(1)
