"""Caches the plans of checked one-off calls, so that a call like an earlier one skips the checks."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from pygen.backends import Dispatcher
from pygen.ops._plain import is_plain

# Types whose equal values have the same meaning. 1, 1.0 and True are equal, so a key also holds the types.
_SCALARS = frozenset((int, float, bool, str, type(None), torch.device))
_MOST_IDS = 64

Plan = TypeVar("Plan")


class Plans(Generic[Plan]):
    """The plans of up to `size` different calls of an op, the most recently used ones. Plans hold no caller's tensor.

    A key does not contain the elements of tensors, so only calls without checks of elements are cached.
    """

    def __init__(self, dispatcher: Dispatcher[Any], size: int = 256) -> None:
        self._dispatcher = dispatcher
        self._size = size
        self._plans: OrderedDict[Hashable, Plan] = OrderedDict()
        self._lock = threading.Lock()

    def key(self, backend: str, scalars: tuple[object, ...], tensors: tuple[object, ...]) -> Hashable:
        """Returns everything that the checks of a call depend on; None if it cannot be cached (per-row knobs)."""
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
        # The order of use only matters for evictions, and updating it is expensive.
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
    """Returns a few ids as part of a key. For many ids it returns a value that isn't a scalar, which prevents a key."""
    if ids is None or isinstance(ids, Tensor):
        return (None,)
    if type(ids) in (list, tuple) and len(ids) <= _MOST_IDS:  # type: ignore[arg-type]
        return (len(ids), *ids)  # type: ignore[arg-type, misc]
    return (ids,)
