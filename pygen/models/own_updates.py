"""A model's own `_update_model_kwargs_for_generation`, called token by token, so that tokens can be taken back."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, MutableMapping
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
# How often outputs with other values are tried: a hook may make one bit of them.
_TRIES = 8


class OwnUpdates:
    """The arguments of forwards after each generated token, as the hook makes them::

        start(outputs, kwargs)            calls the hook once for the prompt
        arguments(2, 3)                   of a forward over tokens 2, 3 and 4, where the model has read 0 and 1
        add(outputs)                      calls the hook for each of the three, with its part of the outputs
        arguments(3, 1)                   of a forward over another token 3: what came behind is dropped

    A forward over several tokens needs arguments for tokens that no forward has read yet. The hook is called for these
    with the newest outputs there are, and again with the right ones afterwards. `reads_outputs` tells whether that
    makes a difference.

    update: (outputs, kwargs) -> kwargs. It gets a new dict each time.
    keep: whether tokens are taken back; else the arguments of the newest alone are kept.
    rereads: whether forwards read the whole text, as without a cache; else only what the model has not read.
    """

    def __init__(
        self, update: Callable[[Any, dict[str, Any]], dict[str, Any]], *, keep: bool, rereads: bool = False
    ) -> None:
        self._update = update
        self._keep = keep
        self._rereads = rereads
        self._after: dict[int, dict[str, Any]] = {}
        self._held = False
        self._reading = (0, 0)
        self._outputs: Any = None
        self.writes_in_place = False
        """Whether the hook has changed a tensor that it was given, so that earlier arguments are lost."""
        self.reads_outputs = False
        """Whether a token's arguments depend on the outputs before it, so that no two can be read at once."""

    def start(self, outputs: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        if not self._keep:
            self._after = {0: self._update(outputs, dict(kwargs))}
            return self._after[0]
        given = list(leaves(kwargs))
        before = [tensor.clone() for tensor in given]
        self._after, self._outputs = {0: self._update(outputs, dict(kwargs))}, outputs
        self.writes_in_place = not all(map(torch.equal, before, given))
        if not self.writes_in_place:
            self.reads_outputs = self._depends_on(outputs, kwargs, self._after[0])
            # For a hook that also keeps what it was given last.
            self._after = {0: self._update(outputs, dict(kwargs))}
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
            of_token = outputs if unread == 1 else self._of_token(outputs, i - unread)
            self._after[read + i + 1] = self._update(of_token, dict(self._after[read + i]))
        self._outputs = of_token if self._keep else None
        return self._after[read + unread]

    def _of_token(self, outputs: Any, place: int) -> Any:
        """The outputs of a forward over several tokens as they are of one that ends at `place`: -1 is the last."""
        width = None if self._rereads else 1
        return _changed(outputs, lambda tensor, dim: _cut(tensor, dim, place, width))

    def _depends_on(self, outputs: Any, kwargs: dict[str, Any], expected: dict[str, Any]) -> bool:
        """Whether the hook makes something else of `kwargs` where the outputs have other values for their tokens."""
        wanted = list(leaves(expected))
        for seed in range(_TRIES):
            try:
                found = list(
                    leaves(self._update(_changed(outputs, functools.partial(_noise, seed=seed)), dict(kwargs)))
                )
            except (RuntimeError, ValueError, TypeError, LookupError):
                return True
            if len(found) != len(wanted) or not all(map(torch.equal, found, wanted)):
                return True
        return False


def _changed(outputs: Any, change: Callable[[Tensor, int], Tensor]) -> Any:
    """A copy of a model's outputs with `change(tensor, dim)` of what they hold by token; dim: of the tokens."""
    if isinstance(outputs, Tensor):
        return change(outputs, 1)
    if isinstance(outputs, tuple):
        return (change(outputs[0], 1), *outputs[1:])
    found, is_mapping = copy.copy(outputs), isinstance(outputs, MutableMapping)
    for name, dim in _BY_TOKEN.items():
        value = outputs.get(name) if is_mapping else getattr(outputs, name, None)
        if value is None:
            continue
        value = map_leaves(functools.partial(_at, dim, change), value)
        if is_mapping:
            found[name] = value
        else:
            setattr(found, name, value)
    return found


def _at(dim: int, change: Callable[[Tensor, int], Tensor], tensor: Tensor) -> Tensor:
    return change(tensor, dim)


def _noise(tensor: Tensor, dim: int, seed: int) -> Tensor:
    generator = torch.Generator(tensor.device).manual_seed(seed)
    return torch.rand(tensor.shape, generator=generator, device=tensor.device).to(tensor.dtype)


def _cut(tensor: Tensor, dim: int, place: int, width: int | None) -> Tensor:
    # Logits may be of the last tokens alone.
    end = max(tensor.shape[dim] + place + 1, 1)
    start = 0 if width is None else end - width
    return tensor.narrow(dim, start, end - start)
