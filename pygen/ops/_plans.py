"""Checked one-off calls, kept by what their arguments are: a call like one before is not checked again."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from pygen.backends import Dispatcher
from pygen.ops._plain import is_plain

# Types whose equal values mean the same; 1, 1.0 and True are equal, so a key holds the types too.
_SCALARS = frozenset((int, float, bool, str, type(None), torch.device))
_MOST_IDS = 64

Plan = TypeVar("Plan")


class Plans(Generic[Plan]):
    """The plans of `size` different calls of an op: once they are as many, of those made last. They hold no tensor of a
    caller.

    The elements of tensors are no part of a key: only calls without checks of elements may be kept.
    """

    def __init__(self, dispatcher: Dispatcher[Any], size: int = 256) -> None:
        self._dispatcher = dispatcher
        self._size = size
        self._plans: OrderedDict[Hashable, Plan] = OrderedDict()
        self._lock = threading.Lock()

    def key(self, backend: str, scalars: tuple[object, ...], tensors: tuple[object, ...]) -> Hashable:
        """Everything about a call that its checks look at; None where it cannot be kept, as a per-row knob cannot."""
        types = tuple(map(type, scalars))
        if not _SCALARS.issuperset(types) or type(backend) is not str:
            return None
        forms: list[Hashable] = []
        for tensor in tensors:
            if tensor is None:
                forms.append(None)
            elif type(tensor) is Tensor and is_plain(tensor):
                forms.append((tensor.shape, tensor.stride(), tensor.dtype, tensor.device))
            else:
                return None
        return scalars, types, tuple(forms), self._dispatcher.circumstances(backend)

    def find(self, key: Hashable) -> Plan | None:
        if key is None:
            return None
        plan = self._plans.get(key)
        # Which plan was used last matters only where the next new one takes the place of another; the look-up is dear.
        if plan is not None and len(self._plans) >= self._size:
            with self._lock:
                if key in self._plans:
                    self._plans.move_to_end(key)
        return plan

    def keep(self, key: Hashable, plan: Plan) -> None:
        with self._lock:
            self._plans[key] = plan
            if len(self._plans) > self._size:
                self._plans.popitem(last=False)


def scalars_of_ids(ids: object) -> tuple[object, ...]:
    """Few ids as a part of a key; something that is no scalar, so that there is no key, where they are many."""
    if ids is None or isinstance(ids, Tensor):
        return (None,)
    if type(ids) in (list, tuple) and len(ids) <= _MOST_IDS:  # type: ignore[arg-type]
        return (len(ids), *ids)  # type: ignore[arg-type, misc]
    return (ids,)
