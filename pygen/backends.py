"""Chooses the backend that runs an op, and raises an error with all reasons if none can.

Every op has a table with one entry per backend that has a kernel for it. The name comes from `backend=`, else from
`use_backend`, else from the environment variable PYGEN_BACKEND. The default, "auto", chooses the fastest backend that
runs on the tensor's device.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Generic, TypeVar

import torch

from pygen.notices import warn

BACKENDS = ("cpu", "cuda", "triton", "torch")

# The module that launches every kernel of Triton.
_TRITON_KERNELS = "pygen.triton_kernels._specialization"

_AUTO_ORDER = {"cpu": ("cpu", "torch"), "cuda": ("cuda", "triton", "torch")}

_chosen: ContextVar[str | None] = ContextVar("pygen_backend", default=None)
_warned: set[str] = set()

Entry = TypeVar("Entry")


class BackendError(NotImplementedError):
    """No backend, or not the requested one, can run this call on this machine. The message lists every reason."""


def _cpu_reason() -> str | None:
    try:
        from pygen import _C  # noqa: F401
    except ImportError as error:
        return f"the extension pygen._C cannot be imported ({error})"
    return None


def _cuda_reason() -> str | None:
    reason = _cpu_reason()
    if reason is not None:
        return reason
    from pygen import _C

    build = _C.build_info()
    if not build["cuda"]:
        return f"built without CUDA kernels: {build['cuda_reason']}"
    reason = _device_reason()
    if reason is not None:
        return reason
    reasons = [_target_reason(index) for index in range(torch.cuda.device_count())]
    return None if None in reasons else reasons[0]


@functools.cache
def _target_reason(index: int) -> str | None:
    """Returns why the kernels of the build cannot run on the GPU with this index, or None."""
    from pygen import _C

    archs = _C.build_info()["cuda_archs"]
    try:
        major, minor = _C.cuda_capability(index)
    except RuntimeError:
        return None  # The launch fails with the same words of the driver.
    if any(_runs_on(arch, major, minor) for arch in archs):
        return None
    return (
        f"the CUDA kernels were built for {', '.join(archs)}, and cuda:{index} has compute capability {major}.{minor}: "
        f"build again with PYGEN_CUDA_ARCHS={major}{minor} or all"
    )


def _runs_on(arch: str, major: int, minor: int) -> bool:
    """Returns whether a GPU runs `arch`: "sm_90" is machine code, "compute_120" PTX, which the driver compiles.

    Machine code serves the GPUs of its major version from its minor version on, PTX all later ones, and either with an
    "a" only its own.
    """
    kind, _, number = arch.partition("_")
    if number.endswith("a"):
        return number == f"{major}{minor}a"
    oldest = divmod(int(number.rstrip("f")), 10)
    return oldest <= (major, minor) and (kind == "compute" or oldest[0] == major)


def _triton_reason() -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed"
    reason = None if interprets_triton() else _device_reason()
    # Last, because it takes a second.
    return reason or _import_reason("triton") or _import_reason(_TRITON_KERNELS)


@functools.cache
def _import_reason(module: str) -> str | None:
    """Returns why `module` cannot be imported; a failed import is not tried again."""
    try:
        importlib.import_module(module)
    # What a package of someone else raises while it loads is its own affair.
    except Exception as error:
        return f"{module} cannot be imported ({type(error).__name__}: {error})"
    return None


def _device_reason() -> str | None:
    return None if torch.cuda.is_available() else "torch finds no CUDA device"


def interprets_triton() -> bool:
    """Returns whether Triton's interpreter runs the kernels, on CPU tensors. Reads TRITON_INTERPRET as Triton does."""
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "on", "yes", "y")


_MACHINE_REASONS: dict[str, Callable[[], str | None]] = {
    "cpu": _cpu_reason,
    "cuda": _cuda_reason,
    "triton": _triton_reason,
    "torch": lambda: None,
}


def available_backends() -> dict[str, str | None]:
    """Returns every backend with None if it can run in this process, or the reason why it cannot."""
    return {name: _MACHINE_REASONS[name]() for name in BACKENDS}


def build_info() -> dict[str, object]:
    """Describes the compiled extension `pygen._C`, as plain values.

    Returns a dict: `version`, `compiler`, `openmp` (bool); `cpu_isas`, the instruction sets in the build; `cpu_isa`,
    the one in use (the best that this processor supports, or `PYGEN_CPU_ISA`); `cuda` (bool), whether it has CUDA
    kernels; `cuda_reason`, why it has none and the command that builds them; `cuda_archs`, their machine code and PTX
    as in `torch.cuda.get_arch_list()`; `nvcc_version` (empty if the build found no nvcc).

    Raises ImportError if the extension is not built, ValueError if `PYGEN_CPU_ISA` names a set that cannot run.
    """
    from pygen import _C

    return {**_C.build_info(), "cpu_isa": _C.cpu_isa()}


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Chooses the backend of every op called inside the `with` block without `backend=`.

    The choice applies to the current thread or task only. "auto" overrides an outer choice and PYGEN_BACKEND.
    """
    _check_name("name", name)
    token = _chosen.set(name)
    try:
        yield
    finally:
        _chosen.reset(token)


class Dispatcher(Generic[Entry]):
    """The backend table of one op."""

    def __init__(self, op: str, **entries: Entry) -> None:
        self.op = op
        self.entries = entries

    def reasons(self, device: torch.device) -> dict[str, str | None]:
        """Returns every backend with None if this op can run on `device`, or why it cannot."""
        return {name: self._reason(name, device) for name in BACKENDS}

    def resolve(self, device: torch.device, backend: str = "auto") -> tuple[str, Entry]:
        """Returns the name and the entry of the backend to run on `device`.

        Raises ValueError for an unknown name, and BackendError if the chosen backend, or with "auto" every one, cannot
        run. Warns once if "auto" falls back to the torch reference because a faster backend cannot run.
        """
        name, passed_over = self.choose(device, backend)
        if passed_over and name == "torch":
            _warn_once(f"`{self.op}` falls back to backend 'torch': {'; '.join(passed_over)}")
        return name, self.entries[name]

    def circumstances(self, backend: str) -> tuple[object, ...]:
        """Returns everything that the choice for a CPU tensor depends on: equal values lead to the same entry."""
        chosen, environment = _chosen.get(), os.environ.get("PYGEN_BACKEND", "")
        return backend, chosen, environment, self.entries.get("cpu"), _MACHINE_REASONS["cpu"]

    def choose(self, device: torch.device, backend: str = "auto") -> tuple[str, list[str]]:
        """Returns the backend that `resolve` finds, and a sentence for each one that "auto" skips."""
        _check_name("backend", backend)
        if backend == "auto":
            backend = _chosen.get() or _from_environment()
        if backend != "auto":
            if self._reason(backend, device) is not None:
                raise BackendError(self._refusal(device, f"backend {backend!r} cannot run on {device}"))
            return backend, []

        passed_over: list[str] = []
        for name in _AUTO_ORDER.get(device.type, ("torch",)):
            reason = self._reason(name, device)
            if reason is None:
                return name, passed_over
            passed_over.append(f"backend {name!r} cannot run: {reason}")
        raise BackendError(self._refusal(device, f"no backend can run on {device}"))

    def _reason(self, name: str, device: torch.device) -> str | None:
        machine_reason = _MACHINE_REASONS[name]()
        if machine_reason is not None:
            return machine_reason
        if name not in self.entries:
            return f"`{self.op}` has no kernel for it"
        if device.type not in _devices_of(name, device):
            return f"the tensor is on {device}"
        return _target_reason(device.index or 0) if name == "cuda" else None

    def _refusal(self, device: torch.device, what: str) -> str:
        reasons = self.reasons(device)
        return f"`{self.op}`: {what}; " + "; ".join(f"{name}: {reasons[name] or 'can run'}" for name in BACKENDS)


def _devices_of(name: str, device: torch.device) -> tuple[str, ...]:
    if name == "triton" and interprets_triton():
        return ("cpu", "cuda")
    return {"cpu": ("cpu",), "cuda": ("cuda",), "triton": ("cuda",)}.get(name, (device.type,))


def _from_environment() -> str:
    name = os.environ.get("PYGEN_BACKEND", "") or "auto"
    _check_name("PYGEN_BACKEND", name)
    return name


def _check_name(parameter: str, name: str) -> None:
    if name != "auto" and name not in BACKENDS:
        allowed = ", ".join(repr(allowed) for allowed in ("auto", *BACKENDS))
        raise ValueError(f"`{parameter}` must be one of {allowed}, got {name!r}")


def _warn_once(message: str) -> None:
    if message not in _warned:
        _warned.add(message)
        warn(message, RuntimeWarning)
