"""Does on any device what a CUDA graph does: runs a step's kernels again on the same buffers, without its Python."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map


class Tape(TorchDispatchMode):
    """Records torch's ops inside `with tape:`; `replay` runs them again. Host numbers stay as recorded."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._calls: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        self._calls.append((func, args, kwargs or {}, made))
        return made

    def replay(self) -> None:
        again: dict[int, Any] = {}
        for func, args, kwargs, made in self._calls:
            inputs, named = tree_map(lambda value: again.get(id(value), value), (args, kwargs))
            outputs = func(*inputs, **named)
            for before, after in zip(tree_flatten(made)[0], tree_flatten(outputs)[0], strict=True):
                if isinstance(before, Tensor):
                    again[id(before)] = after


class _NoHostReads(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default):
            raise AssertionError(f"the host reads the device: {func}")
        return func(*args, **(kwargs or {}))


@contextmanager
def no_host_reads() -> Iterator[None]:
    """Raises an error wherever the host would wait for a tensor's value."""
    with _NoHostReads():
        yield
