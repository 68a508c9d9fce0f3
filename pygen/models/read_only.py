"""A view of a model for hooks that set attributes; the model does not change."""

from __future__ import annotations

import inspect
import types
from collections.abc import Collection


class ReadOnlyModel:
    """Replaces a model in a call of one of its hooks, and takes the attributes that the hook sets.

    All other attributes are the model's own, without copies. Hooks that the hook calls get this object too.
    """

    def __init__(self, model: object, hidden: Collection[str] = ()) -> None:
        """hidden: attributes that raise AttributeError until the hook sets them."""
        vars(self).update(_read_only_model=model, _read_only_hidden=frozenset(hidden))

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        # `super()` and `self.__class__` in a hook read this.
        return type(vars(self)["_read_only_model"])

    def __getattr__(self, name: str) -> object:
        model = vars(self)["_read_only_model"]
        if name in vars(self)["_read_only_hidden"]:
            raise AttributeError(f"{type(model).__name__} has no attribute {name!r}", name=name, obj=model)
        method = inspect.getattr_static(type(model), name, None)
        if isinstance(method, types.FunctionType) and name not in vars(model):
            return types.MethodType(method, self)
        return getattr(model, name)
