"""A torch.Generator that lends its place in the stream of noise to a captured step."""

from __future__ import annotations

import torch
from torch import Tensor

from pygen.rng import as_int64


class LentGenerator:
    """While a call runs, `words` (`DecodeState.generator_state`) stand for `generator`, which is left alone.

    On the CPU the words are its `get_state()`, on CUDA its seed and offset.
    """

    def __init__(self, generator: torch.Generator, words: Tensor, elements: int) -> None:
        """Queues the copy into `words`. elements: of noise, that a step takes."""
        self._generator, self._words, self._elements = generator, words, elements
        if words.device.type == "cuda":
            self._offset = generator.get_offset()
            words.copy_(torch.tensor([as_int64(generator.initial_seed()), self._offset], dtype=torch.int64))
        else:
            words.copy_(generator.get_state())

    def give_back(self, steps: int, launched: int) -> None:
        """Advances the generator by `steps` steps, where the words were advanced by `launched` >= `steps`.

        On CUDA this waits for the device.
        """
        if self._words.device.type != "cuda":
            for _ in range(steps):
                torch.empty(self._elements).exponential_(generator=self._generator)
        elif launched:
            taken = int(self._words[1]) - self._offset
            self._generator.set_offset(self._offset + taken // launched * steps)
