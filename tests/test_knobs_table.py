"""What is written out beside the table of knobs says the same as the table, and no other file lists knobs."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers.generation.logits_process as theirs

from pygen import _C, GenerationConfig, ops, processors
from pygen.config.rules import DEFAULTS, EXTENSION_RULES, RULES, SAMPLING_ONLY
from pygen.knobs import FILTERS, KNOBS, NEUTRAL, SETTINGS, Knob, ShapingKnobs, Stage
from pygen.processors.recognize import knobs_of

ROOT = Path(__file__).resolve().parent.parent
# Product files that may list six knobs or more.
LISTS = {
    "pygen/knobs.py",
    "pygen/ops/sample.py",
    "pygen/ops/process_logits.py",
    "pygen/ops/beam_step.py",
    "pygen/config/config.py",
    "csrc/common/knobs.def",
}
# Those where the filters' formulas follow each other.
FORMULAS = {"pygen/reference/process_logits.py", "csrc/common/filters.h"}


@cache
def product_lines() -> dict[str, list[str]]:
    """The lines of every product file by its path."""
    suffixes = {".py", ".h", ".cuh", ".cpp", ".cu", ".def"}
    files = [path for folder in ("pygen", "triton_kernels", "csrc") for path in (ROOT / folder).rglob("*")]
    return {str(path.relative_to(ROOT)): path.read_text().splitlines() for path in files if path.suffix in suffixes}


def lists_of_knobs(lines: list[str]) -> Iterator[set[str]]:
    """The knobs of every block of lines that name one, with at most one line between them that does not."""
    block: set[str] = set()
    last = 0
    for number, line in enumerate(lines):
        names = set(re.findall(rf"\b(?:{'|'.join(NEUTRAL)})\b", line))
        if names and number - last > 2:
            yield block
            block = set()
        if names:
            block |= names
            last = number
    yield block


def test_no_other_product_file_lists_six_knobs() -> None:
    assert len(LISTS) <= 6
    listing = {file for file, lines in product_lines().items() if any(len(b) >= 6 for b in lists_of_knobs(lines))}
    assert listing == LISTS | FORMULAS


def test_a_knob_is_named_in_few_lines() -> None:
    """Outside its formula, which the reference, C++ and the text of `process_logits` each state once."""
    lines = [
        (file, line.strip())
        for file, lines in product_lines().items()
        for line in lines
        if "epsilon_cutoff" in line and file not in FORMULAS
    ]
    assert ("pygen/ops/process_logits.py", "epsilon_cutoff  p >= epsilon_cutoff") in lines
    assert len(lines) - 1 <= 12, lines


def test_the_list_of_the_kernels() -> None:
    assert _C.knobs() == [(knob.name, knob.type.__name__, knob.neutral) for knob in KNOBS]


@pytest.mark.parametrize("name", ["sample", "process_logits", "beam_step"])
def test_signatures_of_ops(name: str) -> None:
    parameters = inspect.signature(getattr(ops, name)).parameters
    assert [
        (parameter.name, parameter.kind, parameter.annotation, parameter.default)
        for parameter in parameters.values()
        if parameter.name in NEUTRAL
    ] == [
        (knob.name, inspect.Parameter.KEYWORD_ONLY, annotation(knob), None if knob.is_optional else knob.neutral)
        for knob in KNOBS
    ]


def test_the_typed_dict() -> None:
    assert {name: kind.__forward_arg__ for name, kind in ShapingKnobs.__annotations__.items()} == {
        knob.name: annotation(knob) for knob in KNOBS
    }
    assert list(ShapingKnobs.__annotations__) == list(NEUTRAL)


def annotation(knob: Knob) -> str:
    kind = "IntKnob" if knob.type is int else "FloatKnob"
    return f"{kind} | None" if knob.is_optional else kind


def test_the_settings() -> None:
    for knob in SETTINGS:
        rules = EXTENSION_RULES if knob.is_extension else RULES
        kind = knob.type.__name__
        annotations = GenerationConfig.__annotations__
        assert rules[knob.name] is knob.rule and knob.rule.per_row
        assert annotations.get(knob.name) == (None if knob.is_extension else f"{kind} | list[{kind}] | None")
        assert DEFAULTS.get(knob.name) == (None if knob.is_extension else knob.default)
        assert (knob.name in SAMPLING_ONLY) == (knob.stage >= Stage.TEMPERATURE)


def test_the_order_of_the_stages() -> None:
    assert [knob.stage for knob in KNOBS] == sorted(knob.stage for knob in KNOBS)
    assert all(knob.formula for knob in KNOBS)
    assert all(knob.source for knob in SETTINGS)
    assert {type(knob.neutral) for knob in KNOBS if knob.type is int} == {int}


@pytest.mark.parametrize("knob", [knob for knob in KNOBS if knob.processor], ids=lambda knob: knob.name)
def test_processors(knob: Knob) -> None:
    value: Any = 3 if knob.type is int else 0.5
    modules = [processors] if knob.is_extension else [processors, theirs]
    for module in modules:
        processor = getattr(module, knob.processor)(value)
        found = knobs_of(processor, samples=True)
        assert found.pop("min_tokens_to_keep", None) == (1 if knob.keeps_minimum else None)
        assert found == {knob.name: value}
        assert (knobs_of(processor, samples=False) == {}) == (knob.stage >= Stage.TEMPERATURE)


@pytest.mark.parametrize("knob", KNOBS, ids=lambda knob: knob.name)
def test_a_neutral_value_does_nothing(knob: Knob) -> None:
    logits = torch.linspace(-3, 3, 12).view(2, 6)
    neutral = torch.full((2,), knob.neutral, dtype=torch.int64 if knob.type is int else torch.float32)
    for value in (neutral, None if knob.is_optional else knob.neutral):
        knobs: dict[str, Any] = {"input_ids": torch.tensor([[0, 1], [2, 2]]), knob.name: value}
        assert ops.process_logits(logits, **knobs).equal(logits)


@pytest.mark.parametrize("knob", FILTERS, ids=lambda knob: knob.name)
def test_which_filters_keep_a_minimum(knob: Knob) -> None:
    logits = torch.linspace(-9, 9, 8)[None]
    strict: Any = {"top_k": 1, "top_p": 0.1, "min_p": 0.9, "typical_p": 0.1, "top_h": 0.1}.get(knob.name, 0.9)
    kept = ops.process_logits(logits, min_tokens_to_keep=3, **{knob.name: strict}) > -torch.inf
    assert int(kept.sum()) == (3 if knob.keeps_minimum else 1)


def test_an_unknown_knob() -> None:
    for call in (ops.sample, ops.process_logits, ops.prepare_sample):
        with pytest.raises(TypeError, match="unexpected keyword argument 'top_q'"):
            call(torch.zeros(1, 2), top_q=0.5)  # type: ignore[call-arg]
