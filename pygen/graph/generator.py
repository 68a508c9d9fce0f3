"""The state of a torch.Generator in device memory, which a captured step advances."""

from __future__ import annotations

import torch
from torch import Tensor

from pygen.rng import as_int64, lock_of


class DeviceGeneratorState:
    """While a call runs, `words` (`DecodeState.generator_state`) replace `generator`.

    On the CPU the words are its `get_state()`, and the generator stays as it is. On CUDA they are its seed and offset,
    and the generator moves past all noise that the call may take, so that no other thread draws the same.
    """

    def __init__(self, generator: torch.Generator, words: Tensor, elements: int, max_steps: int) -> None:
        """Queues the copy into `words`. elements: of noise, that a step takes."""
        self._generator, self._words, self._elements = generator, words, elements
        if words.device.type == "cuda":
            with lock_of(generator):
                self._offset = generator.get_offset()
                # No thread of a launch takes more than all elements; offsets are multiples of 4.
                self._behind = self._offset + max_steps * ((elements + 3) // 4 * 4)
                generator.set_offset(self._behind)
            words.copy_(
                torch.tensor([as_int64(generator.initial_seed()), self._offset], dtype=torch.int64, device="cpu")
            )
        else:
            words.copy_(generator.get_state())

    def give_back(self, steps: int, launched: int) -> None:
        """Advances the generator by `steps` steps, where the words were advanced by `launched` >= `steps`.

        On CUDA this waits for the device. If another thread has drawn from the generator, it stays
        where it is.
        """
        if self._words.device.type != "cuda":
            for _ in range(steps):
                torch.empty(self._elements, device="cpu").exponential_(generator=self._generator)
            return
        taken = (int(self._words[1]) - self._offset) // launched * steps if launched else 0
        with lock_of(self._generator):
            if self._generator.get_offset() == self._behind:
                self._generator.set_offset(self._offset + taken)
