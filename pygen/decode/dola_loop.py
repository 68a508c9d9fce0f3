"""DoLa: greedy search and sampling from the difference between the last layer's scores and an earlier one's."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from pygen.decode.dola_scores import contrast
from pygen.models.adapter import ModelAdapter
from pygen.plan.pipeline import Choice, Chooser


class ContrastChooser:
    """A `Chooser` that is given the last layer's logits, and lets another choose from what `contrast` makes of them."""

    def __init__(
        self, choose: Chooser, model: ModelAdapter, head: Callable[[Tensor], Tensor], layers: Sequence[int]
    ) -> None:
        """head: states (rows, width) -> logits (rows, vocab_size). layers: those to contrast with."""
        self._choose = choose
        self._model = model
        self._head = head
        self._layers = layers

    def __call__(self, logits: Tensor, step: int) -> Choice:
        states = [layer[:, -1] for layer in self._model.take_hidden_states(self._layers)]
        # Copies of a prompt may have been read once.
        copies = logits.shape[0] // states[0].shape[0]
        early = (self._head(state).repeat_interleave(copies, dim=0) for state in states)
        return self._choose(contrast(logits, early), step)
