"""What this installation was built with."""

from __future__ import annotations


def build_info() -> dict[str, object]:
    """Facts about the compiled extension `pygen._C`, as plain values.

    Returns a dict: `version`, `compiler`, `openmp` (bool); `cpu_isas`, the instruction sets that were built; `cpu_isa`,
    the one in use (the best that this processor runs, or `PYGEN_CPU_ISA`); `cuda` (bool), `cuda_reason`, `nvcc_version`
    (empty when the build found no nvcc).

    Raises ImportError when the extension is not built, ValueError when `PYGEN_CPU_ISA` names a set that cannot run.
    """
    from pygen import _C

    return {**_C.build_info(), "cpu_isa": _C.cpu_isa()}
