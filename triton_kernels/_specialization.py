"""The compiled forms of the kernels: every op lists its own, launches go through here, and tests compile them all."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from pygen.triton_kernels._keys import settle

# Of the kernels that have one program per row.
ROW_WARPS = 8
ROW_REGISTERS = 128  # two programs on a multiprocessor
_LEAST_ARCH_OF_DEPENDENT_LAUNCHES = 90


@dataclass(frozen=True)
class Specialization:
    """One compiled form. The module of an op lists its own in `specializations() -> list[Specialization]`.

    signature: the type of every argument that is no constexpr, in order: "*fp16", "i64", "fp32", or a tuple of such.
    constexprs: the value of every constexpr.
    max_registers: of a thread. Without it, ptxas may spill rather than give up a second block on a multiprocessor.
    dependent: a launch may start before the one in front of it ends, for which its programs then wait.
    """

    name: str
    kernel: Any
    signature: dict[str, Any]
    constexprs: dict[str, object]
    num_warps: int
    max_registers: int | None = None
    dependent: bool = False

    def on(self, arch: int) -> tuple[dict[str, object], dict[str, object]]:
        """The constexprs, and the options of Triton's compiler, on a GPU of compute capability arch / 10."""
        # Results have to be those of the other backends, so a product is rounded before it is added.
        options: dict[str, object] = {"num_warps": self.num_warps, "enable_fp_fusion": False}
        if self.max_registers is not None:
            options["maxnreg"] = self.max_registers
        overlaps = arch >= _LEAST_ARCH_OF_DEPENDENT_LAUNCHES
        if self.dependent and overlaps:
            options["launch_pdl"] = True
        overlap = {"PDL": overlaps} if "PDL" in self.kernel.arg_names else {}
        return {**self.constexprs, **overlap}, options


# Called before every launch with what is launched; for tests.
observers: list[Callable[[Specialization], None]] = []


def signature_of(kernel: Any, pointers: Mapping[str, Any]) -> dict[str, Any]:
    """The signature of a kernel whose scalars are annotated with their types.

    pointers: element types by name; a tuple of pointers has a tuple of types, of the same class.
    """
    return {
        name: _pointers_to(pointers[name]) if name in pointers else spelled(parameter.annotation)
        for name, parameter in inspect.signature(kernel.fn).parameters.items()
        if "constexpr" not in repr(parameter.annotation)
    }


def _pointers_to(types: Any) -> Any:
    return f"*{types}" if isinstance(types, str) else _mapped(_pointers_to, types)


def _mapped(function: Callable[[Any], Any], values: tuple[Any, ...]) -> Any:
    """A tuple of the class of `values`, which may be a NamedTuple."""
    return getattr(values, "_make", tuple)(map(function, values))


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
    dependent: bool = False,
    **constexprs: object,
) -> None:
    """Runs `kernel` over `grid` on the device of its first argument, a tensor; the others follow in its order.

    A kernel with the constexpr PDL (programmatic dependent launch) is told whether the GPU has it.
    """
    if observers:
        names = [name for name in kernel.arg_names if name not in constexprs and name != "PDL"]
        types = {name: _types_of(value) for name, value in zip(names, arguments, strict=True)}
        signature = signature_of(kernel, {name: kind for name, kind in types.items() if kind is not None})
        launched = Specialization(kernel.__name__, kernel, signature, constexprs, num_warps, max_registers, dependent)
        for observe in observers:
            observe(launched)
    settle()
    device = arguments[0].device
    form = Specialization("", kernel, {}, constexprs, num_warps, max_registers, dependent)
    constexprs, options = form.on(_arch(device))
    if device.type == "cuda" and device.index != torch.cuda.current_device():
        with torch.cuda.device(device):
            kernel[grid](*arguments, **constexprs, **options)
    else:
        kernel[grid](*arguments, **constexprs, **options)


def _types_of(argument: Any) -> Any:
    """The element types of a tensor or a tuple of tensors; None for a scalar."""
    if isinstance(argument, tuple):
        return _mapped(_types_of, argument)
    return spelled(argument.dtype) if hasattr(argument, "data_ptr") else None


@lru_cache
def _arch(device: torch.device) -> int:
    """Ten times the compute capability; 0 in the interpreter."""
    if device.type != "cuda":
        return 0
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor
