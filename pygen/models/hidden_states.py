"""Collects the hidden states of forwards for the searches that read them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn


class HiddenStates:
    """Collects the hidden states of forwards until a loop takes them."""

    def __init__(self, model: nn.Module) -> None:
        self._name = type(model).__name__
        self._pieces: list[Sequence[object] | None] = []

    def keep(self, outputs: object) -> None:
        """Adds those of one forward, over a whole prompt, a piece of it, or tokens."""
        self._pieces.append(_states_of(outputs))

    def clear(self) -> None:
        self._pieces.clear()

    def take(self, layers: Sequence[int]) -> list[Tensor]:
        """(rows, length, width) for each of `layers`, of all forwards since the last call; layer 0 is the embeddings.

        Errors: NotImplementedError for models that return anything else.
        """
        pieces = [[self._checked(piece, layer) for piece in self._pieces] for layer in layers]
        self.clear()
        return [piece[0] if len(piece) == 1 else torch.cat(piece, dim=1) for piece in pieces]

    def _checked(self, states: Sequence[object] | None, layer: int) -> Tensor:
        if states is None:
            found = "none"
        elif not -len(states) <= layer < len(states):
            found = f"those of {len(states)} layers"
        else:
            of_layer = states[layer]
            if isinstance(of_layer, Tensor) and of_layer.ndim == 3:
                return of_layer
            found = f"shape {tuple(getattr(of_layer, 'shape', ()))}"
        raise NotImplementedError(
            f"`model`={self._name} must return hidden states (rows, length, width) of layer {layer}, which contrastive "
            f"search and DoLa read, got {found}"
        )


def _states_of(outputs: object) -> Sequence[object] | None:
    states: Sequence[object] | None = None
    for name in ("decoder_hidden_states", "hidden_states"):
        if states is None:
            states = outputs.get(name) if isinstance(outputs, Mapping) else getattr(outputs, name, None)
    return states
