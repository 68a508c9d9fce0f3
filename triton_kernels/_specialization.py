"""The compiled forms of the kernels: every op lists its own, launches go through here, and tests compile them all."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Specialization:
    """One compiled form. The module of an op lists its own in `specializations() -> list[Specialization]`.

    signature: the type of every argument that is no constexpr, in order: "*fp16", "i64", "fp32".
    constexprs: the value of every constexpr.
    max_registers: of a thread. Left to itself, ptxas spills rather than give up a second block on a multiprocessor.
    """

    name: str
    kernel: Any
    signature: dict[str, str]
    constexprs: dict[str, object]
    num_warps: int
    max_registers: int | None = None

    @property
    def options(self) -> dict[str, object]:
        """What Triton is told when it compiles this."""
        return _options(self.num_warps, self.max_registers)


# Called before every launch with what is launched; for tests.
observers: list[Callable[[Specialization], None]] = []


def signature_of(kernel: Any, pointers: Mapping[str, str]) -> dict[str, str]:
    """The signature of a kernel whose scalars are annotated with their types; `pointers`: element types by name."""
    return {
        name: f"*{pointers[name]}" if name in pointers else spelled(parameter.annotation)
        for name, parameter in inspect.signature(kernel.fn).parameters.items()
        if "constexpr" not in repr(parameter.annotation)
    }


def spelled(dtype: Any) -> str:
    """A dtype of torch or Triton as signatures have it: "fp32", "i64"."""
    name = str(dtype).removeprefix("torch.").replace("bool", "i1").replace("bfloat", "bf").replace("float", "fp")
    return name.replace("uint", "u").replace("int", "i")


def launch(
    kernel: Any,
    grid: tuple[int, ...],
    *arguments: Any,
    num_warps: int,
    max_registers: int | None = None,
    **constexprs: object,
) -> None:
    """Runs `kernel` over `grid` on the device of its first argument, a tensor; the others follow in its order."""
    if observers:
        names = [name for name in kernel.arg_names if name not in constexprs]
        tensors = zip(names, arguments, strict=True)
        pointers = {name: spelled(value.dtype) for name, value in tensors if hasattr(value, "data_ptr")}
        signature = signature_of(kernel, pointers)
        launched = Specialization(kernel.__name__, kernel, signature, constexprs, num_warps, max_registers)
        for observe in observers:
            observe(launched)
    options = _options(num_warps, max_registers)
    device = arguments[0].device
    if device.type == "cuda" and device.index != torch.cuda.current_device():
        with torch.cuda.device(device):
            kernel[grid](*arguments, **constexprs, **options)
    else:
        kernel[grid](*arguments, **constexprs, **options)


def _options(num_warps: int, max_registers: int | None) -> dict[str, object]:
    # Results are to be those of the other backends, so products are rounded before they are added to.
    options: dict[str, object] = {"num_warps": num_warps, "enable_fp_fusion": False}
    return options if max_registers is None else {**options, "maxnreg": max_registers}
