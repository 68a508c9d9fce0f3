"""Where tensors hold their rows: records of a forward, and states that a model keeps in its modules.

No shape alone says which dimension counts the rows. Two forwards over the same prompts do, of which the second reads
every prompt several times.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

# The row dimension of a tensor: None where it holds the same for any rows, UNKNOWN where they cannot be told apart.
UNKNOWN = -1
_OF_EVERY_MODULE = vars(nn.Module()).keys()


def leaves(value: Any) -> Iterator[Tensor]:
    """The tensors of nested tuples, lists and dicts, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list, dict)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from leaves(item)


def map_leaves(function: Callable[[Tensor], Any], value: Any) -> Any:
    """`value` with the result of `function` in the place of every tensor, in the order of `leaves`."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, dict):
        return type(value)((key, map_leaves(function, item)) for key, item in value.items())
    if isinstance(value, (tuple, list)):
        items = [map_leaves(function, item) for item in value]
        return items if isinstance(value, list) else tuple(items)
    return value


def is_by_rows(name: str, record: Any, rows: int) -> bool:
    """Whether every layer of a record of a forward is the tensor that models return: attentions (rows, heads, queries,
    keys), hidden states (rows, length, width)."""
    dims = 4 if name.endswith("attentions") else 3
    return all(tensor.ndim == dims and tensor.shape[0] == rows for tensor in leaves(record))


def row_dims(few: Any, many: Any, copies: int, batch_size: int) -> list[int | None]:
    """The row dimension of every tensor: `few` are of `batch_size` rows, `many` of `copies` times as many."""
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


def select_rows(value: Any, rows: Tensor, dims: list[int | None] | None = None) -> Any:
    """Row r of the result is row `rows[r]` of `value`.

    dims: the row dimension of every tensor; the first where it is None.
    """
    order = iter(dims) if dims is not None else None

    def select(tensor: Tensor) -> Tensor:
        dim = 0 if order is None else next(order)
        return tensor if dim is None else tensor.index_select(dim, rows.to(tensor.device))

    return map_leaves(select, value)


class ModuleStates:
    """The tensors that the modules of a model keep, apart from parameters: buffers and other attributes.

    What a forward changes of them is a state that the next forward may read, as a cache is.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._seen = _held(model)
        self._dims: dict[tuple[nn.Module, str], list[int | None]] = {}

    def changed(self) -> dict[tuple[nn.Module, str], list[Tensor]]:
        """What was set or written since this object was made."""
        return {
            place: tensors
            for place, (tensors, versions) in _held(self._model).items()
            if place not in self._seen or not _same(self._seen[place], tensors, versions)
        }

    def learn(self, few: dict[tuple[nn.Module, str], list[Tensor]], copies: int, batch_size: int) -> None:
        """Finds the rows of what `changed`, of which `few` was the value for one copy of each of the prompts."""
        for place, many in self.changed().items():
            alike = place in few and len(few[place]) == len(many)
            dims: list[int | None] = [UNKNOWN]
            if alike:
                dims = row_dims(few[place], many, copies, batch_size)
            if any(dim is not None for dim in dims):
                self._dims[place] = dims

    def lose(self, rows: int) -> None:
        """What changed and may have a row for each of `rows` cannot be moved: nothing tells which dimension it is."""
        for place, tensors in self.changed().items():
            if any(rows in tensor.shape for tensor in tensors):
                self._dims[place] = [UNKNOWN]

    def reorder(self, source_rows: Tensor) -> None:
        """Row r of every state goes on from row `source_rows[r]`. NotImplementedError where rows are unknown."""
        for (module, name), dims in self._dims.items():
            if UNKNOWN in dims:
                raise NotImplementedError(
                    f"the rows of `{name}`, a state that {type(module).__name__} keeps to itself, cannot be moved; "
                    f"`use_cache`=False works where that keeps none"
                )
            setattr(module, name, select_rows(getattr(module, name), source_rows, dims))


def _held(model: nn.Module) -> dict[tuple[nn.Module, str], tuple[list[Tensor], list[int]]]:
    """Tensors in attributes, alone or in containers, and how often each was written to."""
    result = {}
    for module in model.modules():
        values = [(name, value) for name, value in vars(module).items() if name not in _OF_EVERY_MODULE]
        for name, value in (*values, *module._buffers.items()):
            if isinstance(value, (Tensor, tuple, list, dict)):
                tensors = list(leaves(value))
                if tensors:
                    # A list may be the same and hold others.
                    result[module, name] = (tensors, [0 if t.is_inference() else t._version for t in tensors])
    return result


def _same(seen: tuple[list[Tensor], list[int]], tensors: list[Tensor], versions: list[int]) -> bool:
    before, counts = seen
    return counts == versions and all(x is y for x, y in zip(before, tensors, strict=True))
