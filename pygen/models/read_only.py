"""A model for hooks that write to it, without the writing."""

from __future__ import annotations

import inspect
import types
from collections.abc import Collection
from typing import Any


class ReadOnlyModel:
    """Stands for a model in a call of one of its hooks: what the hook sets on the model stays here.

    Everything else is the model's own; nothing of it is copied. Hooks that the hook calls get this object too.
    """

    def __init__(self, model: Any, hidden: Collection[str] = ()) -> None:
        """hidden: attributes that seem to be missing until the hook sets them."""
        vars(self).update(_read_only_model=model, _read_only_hidden=frozenset(hidden))

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        # `super()` and `self.__class__` in a hook read this.
        return type(vars(self)["_read_only_model"])

    def __getattr__(self, name: str) -> Any:
        model = vars(self)["_read_only_model"]
        if name in vars(self)["_read_only_hidden"]:
            raise AttributeError(f"{type(model).__name__} has no attribute {name!r}", name=name, obj=model)
        method = inspect.getattr_static(type(model), name, None)
        if isinstance(method, types.FunctionType) and name not in vars(model):
            return types.MethodType(method, self)
        return getattr(model, name)
