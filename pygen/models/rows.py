"""Finds the row dimension of tensors: records of a forward, and states that a model stores in its modules.

One shape does not show which dimension counts the rows. The shapes of two forwards over the same prompts do, if the
second one reads several copies of every prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

# The row dimension of a tensor: None where it does not depend on the rows, UNKNOWN where its shape does not show it.
UNKNOWN = -1
_OF_EVERY_MODULE = vars(nn.Module()).keys()


def leaves(value: object) -> Iterator[Tensor]:
    """The tensors of nested tuples, lists and dicts, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list, dict)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from leaves(item)


def map_leaves(function: Callable[[Tensor], Tensor], value: object) -> Any:
    """A copy of `value` with `function(tensor)` for every tensor, in the order of `leaves`."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, dict):
        return type(value)((key, map_leaves(function, item)) for key, item in value.items())
    if isinstance(value, (tuple, list)):
        items = [map_leaves(function, item) for item in value]
        return items if isinstance(value, list) else tuple(items)
    return value


def is_by_rows(name: str, record: object, rows: int) -> bool:
    """Whether all tensors of a record have the usual shape: attentions (rows, heads, queries, keys), hidden states
    (rows, length, width)."""
    dims = 4 if name.endswith("attentions") else 3
    return all(tensor.ndim == dims and tensor.shape[0] == rows for tensor in leaves(record))


def row_dims(few: object, many: object, copies: int, batch_size: int) -> list[int | None]:
    """The row dimension of every tensor, where `few` has `batch_size` rows and `many` `copies` times as many."""
    pairs = zip(leaves(few), leaves(many), strict=True)
    return [_row_dim(x.shape, y.shape, copies, batch_size) for x, y in pairs]


def _row_dim(few: torch.Size, many: torch.Size, copies: int, batch_size: int) -> int | None:
    if few == many:
        return None
    if len(few) != len(many):
        return UNKNOWN
    grown = [dim for dim in range(len(few)) if few[dim] != many[dim]]
    one = len(grown) == 1 and few[grown[0]] == batch_size and many[grown[0]] == batch_size * copies
    return grown[0] if one else UNKNOWN


def select_rows(value: object, rows: Tensor, dims: list[int | None] | None = None) -> Any:
    """Row r of the result is row `rows[r]` of `value`.

    dims: the row dimension of every tensor; None means the first dimension of all.
    """
    order = iter(dims) if dims is not None else None

    def select(tensor: Tensor) -> Tensor:
        dim = 0 if order is None else next(order)
        return tensor if dim is None else tensor.index_select(dim, rows.to(tensor.device))

    return map_leaves(select, value)


class ModuleStates:
    """The tensors that the modules of a model store, other than parameters: buffers and other attributes.

    Those that a forward changes are a state that the next forward may read, like a cache.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._seen = _tensors_of(model)
        self._dims: dict[tuple[nn.Module, str], list[int | None]] = {}

    def changed(self) -> dict[tuple[nn.Module, str], list[Tensor]]:
        """The tensors that were replaced or written since the construction of this object."""
        return {
            key: tensors
            for key, (tensors, versions) in _tensors_of(self._model).items()
            if key not in self._seen or not _same(self._seen[key], tensors, versions)
        }

    def learn(self, few: dict[tuple[nn.Module, str], list[Tensor]], copies: int, batch_size: int) -> None:
        """Finds the rows of the tensors in `changed()`; `few` has their values for one copy of each prompt."""
        for key, many in self.changed().items():
            alike = key in few and len(few[key]) == len(many)
            dims: list[int | None] = [UNKNOWN]
            if alike:
                dims = row_dims(few[key], many, copies, batch_size)
            if any(dim is not None for dim in dims):
                self._dims[key] = dims

    def lose(self, rows: int) -> None:
        """Marks the changed tensors that may have `rows` rows as UNKNOWN, so that `reorder` refuses to move them."""
        for key, tensors in self.changed().items():
            if any(rows in tensor.shape for tensor in tensors):
                self._dims[key] = [UNKNOWN]

    def reorder(self, source_rows: Tensor) -> None:
        """Row r of every state becomes its row `source_rows[r]`. NotImplementedError where the rows are UNKNOWN."""
        for (module, name), dims in self._dims.items():
            if UNKNOWN in dims:
                raise NotImplementedError(
                    f"the rows of `{name}`, a state that {type(module).__name__} keeps to itself, cannot be moved; "
                    f"`use_cache`=False works for models that keep none without a cache"
                )
            setattr(module, name, select_rows(getattr(module, name), source_rows, dims))


def _tensors_of(model: nn.Module) -> dict[tuple[nn.Module, str], tuple[list[Tensor], list[int]]]:
    """The tensors in attributes, alone or in containers, with a count of the writes to each."""
    result = {}
    for module in model.modules():
        values = [(name, value) for name, value in vars(module).items() if name not in _OF_EVERY_MODULE]
        for name, value in (*values, *module._buffers.items()):
            if isinstance(value, (Tensor, tuple, list, dict)):
                tensors = list(leaves(value))
                if tensors:
                    # The same list may contain other tensors later.
                    result[module, name] = (tensors, [0 if t.is_inference() else t._version for t in tensors])
    return result


def _same(seen: tuple[list[Tensor], list[int]], tensors: list[Tensor], versions: list[int]) -> bool:
    before, counts = seen
    return counts == versions and all(x is y for x, y in zip(before, tensors, strict=True))
