"""Backends for tests only: GPU kernels over the CPU tensors of a test body.

With a GPU, every call copies its tensors there and copies written values back. Without one, Triton's kernels run in its
interpreter and CUDA's on the host.
"""

from __future__ import annotations

import copy
import dataclasses
import importlib
import os
import pkgutil
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pygen import backends, ops
from pygen.ops._noise import given_by_torch
from tests.helpers.triton_interpreter import replace_the_language_once

Entry = Callable[..., Any]

# GPU kernels take thousands of times as long on the CPU, so their tests use fewer and smaller inputs.
EMULATED = not torch.cuda.is_available() and bool(
    {"triton", "cuda_host"} & {*os.environ.get("PYGEN_TEST_BACKENDS", "").split(",")}
)


def kernels_over_cpu_tensors(name: str) -> str:
    """Returns the value for `backend=` that runs the kernels of `name` (triton, cuda, cuda_host) on CPU tensors."""
    if name == "cuda_host":
        from tests.helpers import cuda_host

        register(name, "cuda", lambda entry: _with_noise_given(cuda_host.entry(entry)))
        return name
    if name == "triton" and backends.interprets_triton():
        replace_the_language_once()
        return name
    if name == "cpu_copies":
        # This backend needs no GPU. It shows that the copies do not change the meaning of a test.
        register(name, "cpu", lambda entry: _with_noise_given(_on_copies(entry, "cpu")))
        return name
    if not torch.cuda.is_available():
        raise RuntimeError(f"the tests cannot run backend {name!r}: {backends.available_backends()[name]}")
    register(f"{name}_copies", name, lambda entry: _with_noise_given(_on_copies(entry, "cuda")))
    return f"{name}_copies"


def register(name: str, of: str, wrap: Callable[[Entry], Entry]) -> None:
    """Adds backend `name` to every op that has backend `of`, with that backend's entry wrapped."""
    if name in backends.BACKENDS:
        return
    vars(backends)["BACKENDS"] = (*backends.BACKENDS, name)
    backends._MACHINE_REASONS[name] = lambda: None
    for info in pkgutil.iter_modules(ops.__path__):
        dispatch = getattr(importlib.import_module(f"pygen.ops.{info.name}"), "_dispatch", None)
        if dispatch is not None and of in dispatch.entries:
            dispatch.entries[name] = wrap(dispatch.entries[of])


def _with_noise_given(entry: Entry) -> Entry:
    """Passes torch's noise explicitly: a CUDA kernel needs a CUDA generator, and a test has a CPU generator."""

    def wrapped(*arguments: Any) -> Any:
        call = arguments[0]
        if not (hasattr(call, "shaping") and hasattr(call, "noise")):
            return entry(*arguments)
        noise, refill = given_by_torch(call.noise, call.shaping.like)
        run = entry(dataclasses.replace(call, noise=noise))

        def run_refilled(*step: Any) -> None:
            refill()
            run(*step)

        return run_refilled

    return wrapped


def _on_copies(entry: Entry, device: str) -> Entry:
    def wrapped(*arguments: Any) -> Any:
        copies = _Copies(torch.device(device))
        result = entry(*copies.of(arguments))
        if not callable(result):
            copies.bring_home()
            return _at_home(result)

        def run(logits: Tensor, *rest: Any) -> None:
            copies.send()
            result(_like(logits, copies.device), *rest)
            copies.bring_home()

        return run

    return wrapped


class _Copies:
    """Copies all tensors of a call to `device`; tensors that share memory still do."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._pairs: dict[int, tuple[Tensor, Tensor]] = {}

    def of(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            if id(value) not in self._pairs:
                self._pairs[id(value)] = (value, _like(value, self.device))
            return self._pairs[id(value)][1]
        if isinstance(value, torch.device):
            return self.device
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            moved = copy.copy(value)
            for field in dataclasses.fields(value):
                object.__setattr__(moved, field.name, self.of(getattr(value, field.name)))
            return moved
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return type(value)(*map(self.of, value))
        if isinstance(value, (list, tuple)):
            return type(value)(map(self.of, value))
        return value

    @torch.no_grad()
    def send(self) -> None:
        for home, away in self._pairs.values():
            away.copy_(home)

    @torch.no_grad()
    def bring_home(self) -> None:
        for home, away in self._pairs.values():
            home.copy_(away)


def _like(tensor: Tensor, device: torch.device) -> Tensor:
    """Returns a copy with the same strides, or a contiguous one if elements overlap."""
    tensor = tensor.detach()
    if 0 in tensor.stride():
        return tensor.to(device, copy=True)
    moved = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device)
    return moved.copy_(tensor)


def _at_home(result: Any) -> Any:
    if isinstance(result, Tensor):
        return result.cpu()
    if isinstance(result, tuple):
        return type(result)(*map(_at_home, result)) if hasattr(result, "_fields") else tuple(map(_at_home, result))
    return result
