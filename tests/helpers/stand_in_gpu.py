"""A stand-in for a GPU, for everything above the driver: CUDA tensors without memory, on a machine without a GPU.

`stand_in_gpu()` makes torch's tensors fake: they have shapes, dtypes, strides and addresses, and reading a value raises
an error, as it would wait for a GPU. Ops run their whole Python code, up to the driver:

- Triton's own runtime compiles, loads and launches through a libcuda.so.1 of this folder, which counts launches.
- The extension's plans and launchers ask CUDA's runtime for the device, which finds no driver and says so.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import itertools
import os
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from pygen import backends
from pygen.ops import _plain, _plans, _prepared

SOURCE = Path(__file__).with_name("stand_in_driver.c")
MULTIPROCESSORS = 132
_GIB = 2**30
DTYPES = {
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "fp32": torch.float32,
    "fp64": torch.float64,
    "i1": torch.bool,
    "u8": torch.uint8,
    "i8": torch.int8,
    "i16": torch.int16,
    "i32": torch.int32,
    "i64": torch.int64,
}


class _Addresses:
    """Gives every storage an address that nothing maps, aligned as torch's allocator does."""

    def __init__(self) -> None:
        self._next = itertools.count(1 << 40, _GIB)
        self._of_storage: dict[int, tuple[int, Any]] = {}

    def __call__(self, tensor: torch.Tensor) -> int:
        storage = tensor.untyped_storage()
        # Keeping the storage keeps its key from being used again.
        base, _ = self._of_storage.setdefault(storage._cdata, (next(self._next), storage))
        return base + int(tensor.storage_offset()) * tensor.element_size()


def _module(op: str) -> ModuleType:
    """The module of an op, whose name in the package is the function."""
    return importlib.import_module(f"pygen.ops.{op}")


class _Device(contextlib.nullcontext[None]):
    """torch.cuda.device, for the only device."""


@contextlib.contextmanager
def stand_in_gpu() -> Iterator[None]:
    """Makes every tensor of the body fake, and answers for torch.cuda as for one idle GPU of compute capability 9.0."""
    addresses = _Addresses()
    stream = SimpleNamespace(cuda_stream=0, device=torch.device("cuda", 0))
    properties = SimpleNamespace(multi_processor_count=MULTIPROCESSORS, major=9, minor=0)
    with contextlib.ExitStack() as stack:
        for owner, name, value in (
            (torch.cuda, "current_device", lambda: 0),
            (torch.cuda, "device_count", lambda: 1),
            (torch.cuda, "current_stream", lambda device=None: stream),
            (torch.cuda, "device", _Device),
            (torch.cuda, "get_device_capability", lambda device=None: (9, 0)),
            (torch.cuda, "get_device_properties", lambda device=None: properties),
            (torch._C, "_cuda_getCurrentRawStream", lambda device: 0),
            (FakeTensor, "data_ptr", lambda tensor: addresses(tensor)),
            (backends, "_device_reason", lambda: None),
            # These read values of tensors, which waits for a GPU.
            (_module("reorder_cache"), "_check_range", lambda *arguments: None),
            (_module("beam_finalize"), "_longest", lambda state, num_return_sequences: len(state.step_tokens)),
            (_module("beam_finalize"), "_check_walks", lambda *arguments: None),
            *((module, "is_plain", lambda value: True) for module in (_plain, _plans, _prepared)),
        ):
            stack.enter_context(mock.patch.object(owner, name, value, create=True))
        stack.enter_context(FakeTensorMode())
        yield


NO_DRIVER = ("CUDA driver version is insufficient for CUDA runtime version", "no CUDA-capable device is detected")


class RefusedKernels:
    """The extension on a machine without a driver: counts the calls that CUDA's runtime refuses, and takes no others.

    A plan goes on after `set_device`, so that the code behind it runs; its launches do nothing.
    """

    def __init__(self) -> None:
        from pygen import _C

        self._extension = _C
        self.refusals: Counter[str] = Counter()

    def __getattr__(self, name: str) -> Callable[..., Any]:
        value = getattr(self._extension, name)
        if name.startswith("launch_"):
            return lambda *arguments, **named: self.refuse(name, lambda: value(*arguments, **named))
        return lambda **named: _RefusedPlan(name, value(**named), self)

    def refuse(self, name: str, call: Callable[[], object]) -> None:
        """Calls, and raises AssertionError unless CUDA's runtime finds no driver."""
        try:
            call()
        except RuntimeError as error:
            assert any(text in str(error) for text in NO_DRIVER), f"{name}: {error}"
            self.refusals[name] += 1
        else:
            raise AssertionError(f"{name} ran without a driver")


class _RefusedPlan:
    def __init__(self, name: str, plan: Any, kernels: RefusedKernels) -> None:
        self._name, self._plan, self._kernels = name, plan, kernels

    def __getattr__(self, name: str) -> Any:
        return getattr(self._plan, name)

    def set_device(self, ordinal: int) -> int:
        self._kernels.refuse(self._name, lambda: self._plan.set_device(ordinal))
        return 256

    def launch_on(self, stream: int, *arguments: int) -> None:
        assert all(isinstance(argument, int) for argument in (stream, *arguments))


class Launches:
    """Triton's own driver over the library that counts. One per process, before Triton's first launch."""

    def __init__(self, folder: Path) -> None:
        import triton.backends.nvidia
        from triton.backends.nvidia.driver import CudaDriver
        from triton.runtime import driver

        include = Path(triton.backends.nvidia.__path__[0]) / "include"
        library = folder / "libcuda.so.1"
        options = ["-shared", "-fPIC", "-O1", "-Wall", "-Werror", f"-I{include}", f"-Wl,-soname,{library.name}"]
        subprocess.run(["cc", *options, str(SOURCE), "-o", str(library)], check=True)
        # dlopen("libcuda.so.1") finds a library of that name where one is loaded.
        self._library = ctypes.CDLL(str(library), mode=os.RTLD_GLOBAL | os.RTLD_NOW)
        self._library.stand_in_name.restype = ctypes.c_char_p
        self._library.stand_in_launches.restype = ctypes.c_long
        triton.knobs.nvidia.libcuda_path = str(folder)
        driver.set_active(CudaDriver())

    def counts(self) -> Counter[str]:
        """Returns the launches so far, by kernel."""
        found: Counter[str] = Counter()
        for i in itertools.count():
            name = self._library.stand_in_name(i)
            if name is None:
                return found
            found[name.decode()] += self._library.stand_in_launches(i)
        raise AssertionError


def launch_form(specialization: Any) -> None:
    """Launches one compiled form with tensors of its signature, as its op would."""
    from pygen.triton_kernels._specialization import launch

    arguments = [_argument(kind) for kind in specialization.signature.values()]
    options = {name: getattr(specialization, name) for name in ("num_warps", "max_registers", "dependent")}
    launch(specialization.kernel, (1,), *arguments, **options, **specialization.constexprs)


def _argument(kind: Any) -> Any:
    if isinstance(kind, tuple):
        return getattr(kind, "_make", tuple)(map(_argument, kind))
    if kind.startswith("*"):
        return torch.empty(64, dtype=DTYPES[kind[1:]], device="cuda")
    return 1.0 if kind.startswith("fp") else 1


def compiled(kernel: Any) -> list[Any]:
    """Returns what Triton compiled of a kernel on the first device."""
    return list(kernel.device_caches[0][0].values())
