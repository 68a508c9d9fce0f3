"""A model's own `_update_model_kwargs_for_generation`, called token by token, so that tokens can be taken back."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pygen.models.rows import leaves, map_leaves

# Fields of a model's output with an entry per token that was read: its dimension.
_BY_TOKEN = {
    "logits": 1,
    "last_hidden_state": 1,
    "hidden_states": 1,
    "decoder_hidden_states": 1,
    "attentions": -2,
    "decoder_attentions": -2,
    "cross_attentions": -2,
}


class OwnUpdates:
    """The arguments of forwards after each generated token, as the hook makes them::

        start(outputs, kwargs)            calls the hook once for the prompt
        arguments(2, 3)                   of a forward over tokens 2, 3 and 4, where the model has read 0 and 1
        add(outputs)                      calls the hook for each of the three, with its part of the outputs
        arguments(3, 1)                   of a forward over another token 3: what came behind is dropped

    A forward over several tokens needs arguments for tokens that no forward has read yet. The hook is called for these
    with the newest outputs there are, and again with the right ones afterwards.

    update: (outputs, kwargs) -> kwargs. It gets a new dict each time.
    keep: whether tokens are taken back; else the arguments of the newest alone are kept.
    """

    def __init__(self, update: Callable[[Any, dict[str, Any]], dict[str, Any]], *, keep: bool) -> None:
        self._update = update
        self._keep = keep
        self._after: dict[int, dict[str, Any]] = {}
        self._held = False
        self._reading = (0, 0)
        self._outputs: Any = None
        self.writes_in_place = False
        """Whether the hook has changed a tensor that it was given, so that earlier arguments are lost."""

    def start(self, outputs: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        given = list(leaves(kwargs)) if self._keep else []
        before = [tensor.clone() for tensor in given]
        self._after = {0: self._update(outputs, dict(kwargs))}
        self._outputs = outputs if self._keep else None
        self.writes_in_place = not all(map(torch.equal, before, given))
        return self._after[0]

    def begin(self, kwargs: dict[str, Any]) -> None:
        """`kwargs`: the arguments behind the prompt in the place of those that `start` returned."""
        self._after = {0: kwargs}

    def hold(self) -> None:
        """Nothing is taken back behind the tokens that the next forward begins with."""
        self._held = True

    def arguments(self, read: int, unread: int) -> dict[str, Any]:
        """Of a forward over `unread` tokens behind the `read` ones that stay of those generated."""
        first = read if self._held or not self._keep else 0
        self._after = {count: kwargs for count, kwargs in self._after.items() if first <= count <= read}
        self._held, self._reading = False, (read, unread)
        kwargs = self._after[read]
        for _ in range(unread - 1):
            kwargs = self._update(self._outputs, dict(kwargs))
        return kwargs

    def add(self, outputs: Any) -> dict[str, Any]:
        """The arguments behind the tokens that were read; `outputs` are of all of them."""
        read, unread = self._reading
        for i in range(unread):
            of_token = outputs if unread == 1 else _of_token(outputs, i - unread)
            self._after[read + i + 1] = self._update(of_token, dict(self._after[read + i]))
        self._outputs = of_token if self._keep else None
        return self._after[read + unread]


def _of_token(outputs: Any, place: int) -> Any:
    """The outputs of a forward over several tokens, cut to the one at `place`, counted from behind: -1 is the last."""
    cut = copy.copy(outputs)
    for name, dim in _BY_TOKEN.items():
        value = outputs.get(name)
        if value is not None:
            cut[name] = map_leaves(functools.partial(_narrowed, dim=dim, place=place), value)
    return cut


def _narrowed(tensor: Tensor, dim: int, place: int) -> Tensor:
    # Logits may be of the last tokens alone.
    return tensor.narrow(dim, max(tensor.shape[dim] + place, 0), 1)
