"""The offset of a generator that lends its noise to a captured step.

No other caller draws the same noise, and the generator ends after the noise that the step used.
"""

from __future__ import annotations

import types
from typing import Any

import pytest
import torch

from pygen.graph.generator import DeviceGeneratorState


class DeviceGenerator:
    """The interface of a CUDA generator, without a device."""

    def __init__(self, offset: int) -> None:
        self.offset = offset

    def initial_seed(self) -> int:
        return 7

    def get_offset(self) -> int:
        return self.offset

    def set_offset(self, offset: int) -> None:
        assert offset % 4 == 0
        self.offset = offset


class DeviceWords:
    device = types.SimpleNamespace(type="cuda")

    def copy_(self, words: torch.Tensor) -> None:
        self.words = words.clone()

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.words[index]


@pytest.mark.parametrize("elements", [1, 1000, 1003])
@pytest.mark.parametrize(("steps", "launched"), [(3, 3), (3, 5), (0, 0)])
def test_unused_noise_is_returned_to_the_generator(elements: int, steps: int, launched: int) -> None:
    generator, words = DeviceGenerator(40), DeviceWords()
    lent = DeviceGeneratorState(_as(generator), _as(words), elements, max_steps=9)
    assert words.words.tolist() == [7, 40]
    assert generator.offset >= 40 + 9 * elements
    words.words[1] += 8 * launched
    lent.give_back(steps, launched)
    assert generator.offset == 40 + 8 * steps


def test_a_concurrent_draw_keeps_its_effect() -> None:
    generator, words = DeviceGenerator(40), DeviceWords()
    lent = DeviceGeneratorState(_as(generator), _as(words), 1000, max_steps=9)
    generator.set_offset(generator.offset + 16)
    drawn = generator.offset
    words.words[1] += 24
    lent.give_back(3, 3)
    assert generator.offset == drawn


def test_two_calls_take_different_noise() -> None:
    generator, first, second = DeviceGenerator(0), DeviceWords(), DeviceWords()
    calls = [DeviceGeneratorState(_as(generator), _as(words), 1000, max_steps=9) for words in (first, second)]
    assert int(second[1]) - int(first[1]) >= 9 * 1000
    for call in calls:
        call.give_back(0, 0)


def _as(value: object) -> Any:
    return value
