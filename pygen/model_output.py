"""The surface of a model's output without transformers: fields by attribute, by name and by place."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from dataclasses import fields
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree


class ModelOutput(MutableMapping[str, Any]):
    """Base of dataclasses whose fields are items: by attribute, name and place. What is None is an attribute only.

    `output.sequences`, `output["sequences"]` and `output[0]` are the same. Iterating gives names, as for a dict;
    `to_tuple()` gives the values. `output[name] = value` may add an item, which is an attribute too; an attribute that
    is set and is no field is no item. A mapping or pairs in the place of the first field are all fields, so that
    `type(output)(dict(output))` is a copy. `torch.utils._pytree` maps over the items.
    """

    _added: tuple[str, ...] = ()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        pytree.register_pytree_node(
            cls,
            lambda output: ([*output.values()], [*output.keys()]),
            lambda values, names: cls(zip(names, values, strict=True)),  # type: ignore[call-arg]
            serialized_type_name=f"{cls.__module__}.{cls.__qualname__}",
        )

    def __post_init__(self) -> None:
        first = fields(self)[0].name  # type: ignore[arg-type]
        given = getattr(self, first)
        if isinstance(given, Iterable) and not isinstance(given, Tensor):
            entries = given if isinstance(given, Mapping) else dict(given)
            setattr(self, first, None)
            for name, value in entries.items():
                self[name] = value

    def to_tuple(self) -> tuple[Any, ...]:
        return tuple(self.values())

    def __getitem__(self, key: Any) -> Any:
        if not isinstance(key, str):
            return self.to_tuple()[key]
        if key not in self:
            raise KeyError(key)
        return getattr(self, key)

    def __setitem__(self, name: str, value: Any) -> None:
        if name not in self._names():
            self._added = (*self._added, name)
        setattr(self, name, value)

    def __delitem__(self, name: str) -> None:
        if name not in self:
            raise KeyError(name)
        setattr(self, name, None)

    def __contains__(self, name: object) -> bool:
        return name in self._names() and getattr(self, str(name)) is not None

    def __iter__(self) -> Iterator[str]:
        return (name for name in self._names() if getattr(self, name) is not None)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def _names(self) -> list[str]:
        return [*(field.name for field in fields(self)), *self._added]  # type: ignore[arg-type]
