"""Calls a model's own `_update_model_kwargs_for_generation` token by token, so that a loop can undo tokens."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, MutableMapping
from typing import Any

import torch
from torch import Tensor

from pygen.models.rows import leaves, map_leaves

# The fields of a model's output with one entry per new token, and the dimension of the entries.
_BY_TOKEN = {
    "logits": 1,
    "last_hidden_state": 1,
    "hidden_states": 1,
    "decoder_hidden_states": 1,
    "attentions": -2,
    "decoder_attentions": -2,
    "cross_attentions": -2,
}
# The number of trials with other outputs. A hook may reduce outputs to one bit, so one trial is not enough.
_TRIES = 8


class OwnUpdates:
    """The arguments of a forward after each generated token, from the hook::

        start(outputs, kwargs)            calls the hook once for the prompt
        arguments(2, 3)                   for a forward over tokens 2, 3 and 4; the model has read 0 and 1
        add(outputs)                      calls the hook for each of the three, with its part of the outputs
        arguments(3, 1)                   for a forward over another token 3; drops the arguments of later tokens

    A forward over several tokens needs arguments for tokens that no forward has read yet. For these the object calls
    the hook with the newest outputs, and again with the right ones afterwards. If that makes a difference,
    `reads_outputs` is True.

    update: (outputs, kwargs) -> kwargs, the hook. Each call gets a new dict.
    keep: whether a loop may undo tokens; if not, the object stores only the newest arguments.
    rereads: whether forwards read the whole text, as without a cache, instead of the new tokens only.

    Attributes:
        writes_in_place: whether the hook has changed one of its input tensors, so that earlier arguments are lost.
        reads_outputs: whether the arguments of a token depend on the outputs before it, so that the model must read
            tokens one by one.
    """

    def __init__(
        self, update: Callable[[object, dict[str, object]], dict[str, object]], *, keep: bool, rereads: bool = False
    ) -> None:
        self._update = update
        self._keep = keep
        self._rereads = rereads
        self._after: dict[int, dict[str, Any]] = {}
        self._final = False
        self._reading = (0, 0)
        self._outputs: object = None
        self.writes_in_place = self.reads_outputs = False

    def start(self, outputs: object, kwargs: dict[str, object]) -> dict[str, Any]:
        """The arguments after the prompt."""
        if not self._keep:
            self._after = {0: self._update(outputs, dict(kwargs))}
            return self._after[0]
        given = list(leaves(kwargs))
        before = [tensor.clone() for tensor in given]
        self._after, self._outputs = {0: self._update(outputs, dict(kwargs))}, outputs
        self.writes_in_place = not all(map(torch.equal, before, given))
        if not self.writes_in_place:
            self.reads_outputs = self._depends_on(outputs, kwargs, self._after[0])
            # A hook may store its last input, which must be the real one.
            self._after = {0: self._update(outputs, dict(kwargs))}
        return self._after[0]

    def begin(self, kwargs: dict[str, object]) -> None:
        """Replaces the arguments after the prompt, which `start` returned, by `kwargs`."""
        self._after = {0: kwargs}

    def hold(self) -> None:
        """Declares all tokens before those of the next forward final."""
        self._final = True

    def arguments(self, read: int, unread: int) -> dict[str, Any]:
        """The arguments of a forward over `unread` tokens after the first `read` generated ones, which stay."""
        first = read if self._final or not self._keep else 0
        self._after = {count: kwargs for count, kwargs in self._after.items() if first <= count <= read}
        self._final, self._reading = False, (read, unread)
        kwargs = self._after[read]
        for _ in range(unread - 1):
            kwargs = self._update(self._outputs, dict(kwargs))
        return kwargs

    def add(self, outputs: object) -> dict[str, Any]:
        """The arguments after the tokens of the last forward, whose outputs are `outputs`."""
        read, unread = self._reading
        for i in range(unread):
            of_token = outputs if unread == 1 else self._of_token(outputs, i - unread)
            self._after[read + i + 1] = self._update(of_token, dict(self._after[read + i]))
        self._outputs = of_token if self._keep else None
        return self._after[read + unread]

    def _of_token(self, outputs: object, index: int) -> object:
        """The part of a forward's outputs for the token at `index` < 0, as if that were the last token."""
        width = None if self._rereads else 1
        return _changed(outputs, lambda tensor, dim: _cut(tensor, dim, index, width))

    def _depends_on(self, outputs: object, kwargs: dict[str, object], expected: dict[str, object]) -> bool:
        """Whether the result of the hook changes with the values of the outputs."""
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


def _changed(outputs: object, change: Callable[[Tensor, int], Tensor]) -> object:
    """A copy of a model's outputs with `change(tensor, dim)` for tensors that have an entry per token in `dim`."""
    if isinstance(outputs, Tensor):
        return change(outputs, 1)
    if isinstance(outputs, tuple):
        return (change(outputs[0], 1), *outputs[1:])
    found = copy.copy(outputs)
    for name, dim in _BY_TOKEN.items():
        value = found.get(name) if isinstance(found, MutableMapping) else getattr(found, name, None)
        if value is None:
            continue
        value = map_leaves(functools.partial(_at, dim, change), value)
        if isinstance(found, MutableMapping):
            found[name] = value
        else:
            setattr(found, name, value)
    return found


def _at(dim: int, change: Callable[[Tensor, int], Tensor], tensor: Tensor) -> Tensor:
    return change(tensor, dim)


def _noise(tensor: Tensor, dim: int, seed: int) -> Tensor:
    generator = torch.Generator(tensor.device).manual_seed(seed)
    return torch.rand(tensor.shape, generator=generator, device=tensor.device).to(tensor.dtype)


def _cut(tensor: Tensor, dim: int, index: int, width: int | None) -> Tensor:
    # There may be logits for the last tokens only.
    end = max(tensor.shape[dim] + index + 1, 1)
    start = 0 if width is None else end - width
    return tensor.narrow(dim, start, end - start)
