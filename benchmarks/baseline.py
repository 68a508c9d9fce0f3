"""The settings of a benchmark row, and the work that transformers does for them at every step of `generate()`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from transformers.generation import logits_process as hf

NEUTRAL: dict[str, float] = {
    "temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "typical_p": 1.0, "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0, "top_h": 0.0, "repetition_penalty": 1.0, "no_repeat_ngram_size": 0,
}  # fmt: skip
FILTERS = ("top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff", "top_h")


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
        return {name: getattr(self, name) for name, off in NEUTRAL.items() if getattr(self, name) != off}

    @property
    def unfiltered(self) -> Settings:
        """The same settings without the filters. Filters remove tokens and change no score."""
        off: dict[str, Any] = {name: NEUTRAL[name] for name in FILTERS}
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
            warpers: tuple[tuple[str, Callable[[Any], hf.LogitsProcessor]], ...] = (
                ("temperature", hf.TemperatureLogitsWarper),
                ("top_h", hf.TopHLogitsWarper),
                ("top_k", hf.TopKLogitsWarper),
                ("top_p", hf.TopPLogitsWarper),
                ("min_p", hf.MinPLogitsWarper),
                ("typical_p", hf.TypicalLogitsWarper),
                ("epsilon_cutoff", hf.EpsilonLogitsWarper),
                ("eta_cutoff", hf.EtaLogitsWarper),
            )
            made += [warper(getattr(self, name)) for name, warper in warpers if name in self.active]
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
