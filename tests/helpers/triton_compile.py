"""Compiles every specialisation of the Triton kernels ahead of time, without a GPU, and reports its resources.

    python -m tests.helpers.triton_compile [--json FILE] [--only OP] [--arch 90]

TRITON_INTERPRET must be unset, because interpreted kernels do not compile.
"""

from __future__ import annotations

import argparse
import importlib
import json
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

FOLDER = Path(__file__).resolve().parents[2] / "triton_kernels"
# Maximum shared memory of a block, in bytes.
SHARED_LIMITS = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024, 120: 99 * 1024}
WORKERS = 2
# Forms for drafts of another dtype than the target's compile for one architecture: the dtypes alone cover the others.
MIXED_DTYPES = 90


class Usage(NamedTuple):
    """The resources of one specialisation on one architecture. `error` says why it did not compile."""

    op: str
    name: str
    arch: int
    registers: int = 0
    stack: int = 0  # bytes of spilled registers and local memory
    shared: int = 0  # bytes
    error: str = ""
    releases: int = 0  # instructions that let a dependent launch start
    waits: int = 0  # instructions that wait for the launch in front


def ops() -> list[str]:
    """Returns the modules that list specialisations."""
    return sorted(path.stem for path in FOLDER.glob("[!_]*.py") if "def specializations(" in path.read_text())


def specializations(op: str) -> list[Any]:
    listed: list[Any] = importlib.import_module(f"pygen.triton_kernels.{op}").specializations()
    return listed


def compile_all(only: str | None = None, arch: int | None = None) -> list[Usage]:
    jobs = [
        (op, i, one)
        for one in SHARED_LIMITS
        if arch in (None, one)
        for op in ops()
        if only in (None, op)
        for i, form in enumerate(specializations(op))
        if one == MIXED_DTYPES or len(set(re.findall("fp32|fp16|bf16", form.name))) < 2
    ]
    with ProcessPoolExecutor(WORKERS, mp_context=get_context("spawn")) as pool:
        return sorted(pool.map(_compile_job, jobs))


def _compile_job(job: tuple[str, int, int]) -> Usage:
    op, index, arch = job
    specialization = specializations(op)[index]
    try:
        return usage(op, specialization, arch)
    except Exception as error:
        texts, cause = [f"{type(error).__name__}: {error}"], error.__cause__
        while cause is not None:
            texts, cause = [*texts, str(cause)], cause.__cause__
        return Usage(op, specialization.name, arch, error="\n".join(texts))


def usage(op: str, specialization: Any, arch: int, **options: Any) -> Usage:
    """Compiles as a launch would: scalars have types but no specialisation, pointers are 16-byte aligned."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel = specialization.kernel
    constexprs, defaults = specialization.on(arch)
    signature: dict[str, Any] = {}
    attributes: dict[tuple[int, ...], Any] = {}
    for i, parameter in enumerate(kernel.params):
        kind = signature[parameter.name] = (
            "constexpr" if parameter.is_constexpr else specialization.signature[parameter.name]
        )
        if kind == "constexpr":
            continue
        types = _flat(kind, (i,))
        pointers = [path for path, one in types.items() if one.startswith("*")]
        attributes |= {path: [["tt.divisibility", 16]] for path in pointers}
        if isinstance(kind, tuple):
            if len(pointers) < len(types):
                raise TypeError(f"`{parameter.name}` must have pointers only: a launch specialises integers in a tuple")
        elif not pointers and not (parameter.do_not_specialize and parameter.annotation_type == kind):
            raise TypeError(f"`{parameter.name}` must be annotated {kind} and in do_not_specialize")
    source = ASTSource(
        kernel, signature, {(kernel.arg_names.index(name),): constexprs[name] for name in constexprs}, attributes
    )
    compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32), options={**defaults, **options})
    registers, stack = resources(compiled.asm["cubin"])
    releases, waits = (
        len(re.findall(rf"griddepcontrol\.{name}\b", compiled.asm["ptx"])) for name in ("launch_dependents", "wait")
    )
    return Usage(
        op, specialization.name, arch, registers, stack, compiled.metadata.shared, releases=releases, waits=waits
    )


def _flat(kind: Any, path: tuple[int, ...]) -> dict[tuple[int, ...], str]:
    """Flattens a type, which may be a nested tuple of types, into {path: type}."""
    if not isinstance(kind, tuple):
        return {path: kind}
    return {inner: one for i, nested in enumerate(kind) for inner, one in _flat(nested, (*path, i)).items()}


def resources(cubin: bytes) -> tuple[int, int]:
    """Returns registers per thread, and bytes of stack and local memory."""
    import triton.backends.nvidia

    tool = Path(triton.backends.nvidia.__path__[0]) / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(tool), "--dump-resource-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = {name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", text)}
    return found["REG"], found["STACK"] + found["LOCAL"]


def table(usages: list[Usage]) -> str:
    """Returns one line per specialisation: registers / shared bytes / spills for each architecture."""
    by_name: dict[tuple[str, str], dict[int, Usage]] = {}
    for one in usages:
        by_name.setdefault((one.op, one.name), {})[one.arch] = one
    lines = ["registers/shared bytes/stack bytes: " + ", ".join(f"sm_{arch}" for arch in SHARED_LIMITS)]
    for (op, name), of_arch in by_name.items():
        cells = [
            one.error.splitlines()[0] if one.error else f"{one.registers}/{one.shared}/{one.stack}"
            for one in of_arch.values()
        ]
        lines.append(f"{op:16} {name:40} {'  '.join(f'{cell:>12}' for cell in cells)}")
    return "\n".join(lines)


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only")
    parser.add_argument("--arch", type=int)
    options = parser.parse_args(arguments)
    usages = compile_all(options.only, options.arch)
    print(table(usages))
    print(*sorted({f"{one.op}, {one.name}: {one.error}" for one in usages if one.error}), sep="\n")
    if options.json:
        options.json.write_text(json.dumps(usages))


if __name__ == "__main__":
    main(sys.argv[1:])
