"""The one table of the knobs that shape scores: their values, rules, order, settings, processors and sources.

Checks, defaults, settings, the order of processors and the tables of the kernels derive from `KNOBS`. The public
signatures of the ops, the fields of `GenerationConfig` and csrc/common/knobs.def are written out; a test compares them.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import NamedTuple, TypedDict

from torch import Tensor

from pygen.rules import NumberRule, integer, number

# One value for all rows, or one per row in a list or a (rows,) tensor.
FloatKnob = float | Tensor | Sequence[float]
IntKnob = int | Tensor | Sequence[int]
BoolKnob = bool | Tensor | Sequence[bool]


class Stage(IntEnum):
    """What a knob does. Knobs of an earlier stage act first; the last stage only accompanies filters."""

    PENALTY = 0
    BAN = 1
    TEMPERATURE = 2
    FILTER = 3
    MODIFIER = 4


class Knob(NamedTuple):
    """One row of the table.

    neutral: the value at which the knob does nothing, and where the ops' default is not None, that default.
    rule: of a value; `row_rule` that of a value in a tensor where it differs, because there None cannot say "off".
    default: what generate() takes for a setting that nobody set. None: the knob is off.
    processor: the class of transformers that does the same, and `attribute`, which holds its value. "": no class does.
    reads_history: needs the sequences so far. keeps_minimum: a filter that leaves at least `min_tokens_to_keep` tokens.
    is_extension: transformers' GenerationConfig does not have the setting.
    formula: what it does, in the terms of `ops.process_logits`. source: where it was published.
    """

    name: str
    type: type[float] | type[int]
    stage: Stage
    neutral: float
    rule: NumberRule
    default: float | None = None
    processor: str = ""
    attribute: str = ""
    row_rule: NumberRule | None = None
    reads_history: bool = False
    keeps_minimum: bool = False
    is_extension: bool = False
    formula: str = ""
    source: str = ""

    @property
    def is_optional(self) -> bool:
        """Whether the ops take None, their default, for "off", as no number says it."""
        return not self.rule.holds(self.neutral)


# In the order in which the knobs act.
KNOBS = (
    Knob(
        "repetition_penalty", float, Stage.PENALTY, 1.0, number("(0, inf)", per_row=True), 1.0,
        "RepetitionPenaltyLogitsProcessor", "penalty", reads_history=True,
        formula="every distinct id of the sequence: x * r where x < 0, else x / r",
        source="Keskar et al. 2019, with the sign rule of Hugging Face",
    ),
    Knob(
        "presence_penalty", float, Stage.PENALTY, 0.0, number(per_row=True), 0.0, reads_history=True,
        is_extension=True, formula="every generated id: x - p", source="OpenAI API reference",
    ),
    Knob(
        "frequency_penalty", float, Stage.PENALTY, 0.0, number(per_row=True), 0.0, reads_history=True,
        is_extension=True, formula="every id generated c times: x - c * f", source="OpenAI API reference",
    ),
    Knob(
        "no_repeat_ngram_size", int, Stage.BAN, 0, integer(0, per_row=True), 0,
        "NoRepeatNGramLogitsProcessor", "ngram_size", reads_history=True,
        formula="bans every y such that (last n - 1 ids, y) is already in the sequence",
        source="Paulus et al. 2017",
    ),
    Knob(
        "temperature", float, Stage.TEMPERATURE, 1.0, number("[0, inf)", per_row=True), 1.0,
        "TemperatureLogitsWarper", "temperature", formula="s = x / temperature; 0 is a greedy row",
        source="Ackley et al. 1985",
    ),
    Knob(
        "top_n_sigma", float, Stage.FILTER, 0.0, number("[0, inf)", per_row=True), None,
        "TopNSigmaLogitsWarper", "top_n_sigma", keeps_minimum=True, is_extension=True,
        formula="s >= max s - n * sigma, the standard deviation of the scores that are not -inf",
        source="Tang et al. 2024",
    ),
    Knob(
        "top_h", float, Stage.FILTER, 0.0, number("(0, 1]", per_row=True), None,
        "TopHLogitsWarper", "top_h", row_rule=number("[0, 1]"),
        formula="of the 100 largest, the prefix with cumulative -sum p ln p <= top_h * entropy; the first always",
        source="Potraghloo et al. 2025",
    ),
    Knob(
        "top_k", int, Stage.FILTER, 0, integer(0, per_row=True), 50,
        "TopKLogitsWarper", "top_k", keeps_minimum=True,
        formula="s >= k-th largest, k = max(top_k, min_tokens_to_keep): ties at the boundary stay",
        source="Fan et al. 2018",
    ),
    Knob(
        "top_p", float, Stage.FILTER, 1.0, number("[0, 1]", per_row=True), 1.0,
        "TopPLogitsWarper", "top_p", keeps_minimum=True,
        formula="walking down from the largest, of equal s from the highest id, while the mass before is < top_p",
        source="Holtzman et al. 2020",
    ),
    Knob(
        "min_p", float, Stage.FILTER, 0.0, number("[0, 1]", per_row=True), None,
        "MinPLogitsWarper", "min_p", keeps_minimum=True,
        formula="p >= min_p * max p", source="Nguyen et al. 2024",
    ),
    Knob(
        "typical_p", float, Stage.FILTER, 1.0, number("(0, 1]", per_row=True), 1.0,
        "TypicalLogitsWarper", "mass", keeps_minimum=True,
        formula="d = abs(-ln p - entropy) <= the d at which the mass, d ascending, reaches typical_p",
        source="Meister et al. 2023",
    ),
    Knob(
        "epsilon_cutoff", float, Stage.FILTER, 0.0, number("[0, 1)", per_row=True), 0.0,
        "EpsilonLogitsWarper", "epsilon", keeps_minimum=True,
        formula="p >= epsilon", source="Hewitt et al. 2022",
    ),
    Knob(
        "eta_cutoff", float, Stage.FILTER, 0.0, number("[0, 1)", per_row=True), 0.0,
        "EtaLogitsWarper", "epsilon", keeps_minimum=True,
        formula="p >= min(eta, sqrt(eta) * exp(-entropy))", source="Hewitt et al. 2022",
    ),
    Knob(
        "min_tokens_to_keep", int, Stage.MODIFIER, 1, integer(1, per_row=True),
        formula="every filter but top_h keeps at least as many, the first of its order",
    ),
)  # fmt: skip


class ShapingKnobs(TypedDict, total=False):
    """Keyword arguments of a function that takes every knob of the table."""

    repetition_penalty: FloatKnob
    presence_penalty: FloatKnob
    frequency_penalty: FloatKnob
    no_repeat_ngram_size: IntKnob
    temperature: FloatKnob
    top_n_sigma: FloatKnob
    top_h: FloatKnob | None
    top_k: IntKnob
    top_p: FloatKnob
    min_p: FloatKnob
    typical_p: FloatKnob
    epsilon_cutoff: FloatKnob
    eta_cutoff: FloatKnob
    min_tokens_to_keep: IntKnob


BY_NAME = {knob.name: knob for knob in KNOBS}
# Everything but the modifier is a setting of generate().
SETTINGS = tuple(knob for knob in KNOBS if knob.stage is not Stage.MODIFIER)
PENALTIES = tuple(knob for knob in KNOBS if knob.stage < Stage.TEMPERATURE)
WARPERS = tuple(knob for knob in SETTINGS if knob.stage >= Stage.TEMPERATURE)
FILTERS = tuple(knob for knob in KNOBS if knob.stage is Stage.FILTER)
NEUTRAL: dict[str, float] = {knob.name: knob.neutral for knob in KNOBS}
