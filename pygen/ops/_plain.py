"""Decides whether a kernel may access a tensor through its address. Only this module knows other kinds of tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils import _python_dispatch


def _bits(name: str) -> int:
    return int(torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, name)).raw_repr())


# Dispatch keys of tensors whose elements are not those at the tensor's address, and their words for the message.
_KINDS = {
    "FuncTorchBatched": "one of torch.vmap: call the op outside of it, with all rows at once",
    "FuncTorchGradWrapper": "one of a transform of torch.func: call the op outside of it",
    "Functionalize": "one of torch.func.functionalize: call the op outside of it",
    "Sparse": "a sparse one: pass its to_dense()",
    "SparseCsr": "a sparse one: pass its to_dense()",
    "Quantized": "a quantized one: pass its dequantize()",
    "NestedTensor": "a nested one: pass its to_padded_tensor(padding)",
    "Conjugate": "a conjugated view: pass its resolve_conj()",
    "Negative": "a negated view: pass its resolve_neg()",
    "ZeroTensor": "one without allocated memory: pass its clone()",
}
_ADVICE = {"DTensor": "pass its to_local() or full_tensor()", "FakeTensor": "it has no values"}
# Every call of an op uses these functions. Looking their names up would cost as much as the calls.
_keys_of = torch._C._dispatch_keys
_is_tracing = torch._C._is_tracing
_transform = torch._C._functorch.peek_interpreter_stack
_num_modes = torch._C._len_torch_dispatch_stack
_DENSE = _bits("Dense")
_PYTHON = _bits("Python")
_LOOKED_AT = _DENSE | _PYTHON
for _name in _KINDS:
    _LOOKED_AT |= _bits(_name)


def is_plain(value: Tensor) -> bool:
    """Returns whether the elements of `value` are those at its address, and no tool records or imitates the call.

    A tensor on the device "meta" is plain: the check of devices refuses it.
    """
    return (
        _keys_of(value).raw_repr() & _LOOKED_AT == _DENSE
        and not _is_tracing()
        and _transform() is None
        and (_num_modes() == 0 or _recorder() is None)
    )


def check_plain(name: str, value: Tensor) -> None:
    if is_plain(value):
        return
    recorder = _recorder()
    if recorder is not None:
        raise TypeError(f"`{name}` must be a tensor outside of {recorder}, which cannot see into pygen's kernels")
    raise TypeError(f"`{name}` must be a plain tensor, got {_kind(value)}")


def _kind(value: Tensor) -> str:
    keys = int(torch._C._dispatch_keys(value).raw_repr())
    if keys & _PYTHON:
        name = type(value).__name__
        return f"a {name}: {_ADVICE.get(name, 'a subclass of torch.Tensor, which may store its elements elsewhere')}"
    for name, kind in _KINDS.items():
        if keys & _bits(name):
            return kind
    return f"one of layout {value.layout}: pass its to_dense()"


def _recorder() -> str | None:
    """Returns the tool that records torch's calls, imitates them with fake tensors or transforms them, or None.

    Modes that only watch calls do not count.
    """
    if torch._C._get_tracing_state() is not None:
        return "torch.jit.trace"
    transform = torch._C._functorch.peek_interpreter_stack()
    if transform is not None:
        return f"torch.func's transform {transform.key().name}"
    modes: list[Any] = _python_dispatch._get_current_dispatch_mode_stack()
    return next((type(mode).__name__ for mode in modes if getattr(mode, "_mode_key", None) is not None), None)
