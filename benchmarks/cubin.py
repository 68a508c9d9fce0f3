"""CUDA objects: what ptxas noted about each kernel, and its disassembly by nvdisasm of the triton wheel."""

from __future__ import annotations

import functools
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from benchmarks import sass

_EM_CUDA = 190


def tool(name: str) -> Path:
    """A disassembler of CUDA, which the triton wheel carries."""
    spec = find_spec("triton")
    if spec is None or spec.origin is None:
        raise FileNotFoundError(f"{name} comes with triton, which is not installed")
    return Path(spec.origin).parent / "backends" / "nvidia" / "bin" / name


def extension() -> Path:
    """The built extension of pygen, which holds the objects of all targets."""
    from pygen import _C

    return Path(_C.__file__)


def cubins(path: Path, arch: str = "sm_90") -> Iterator[bytes]:
    """The CUDA objects for `arch` in a cubin, an object file or an extension."""
    content = path.read_bytes()
    if struct.unpack_from("<H", content, 18)[0] == _EM_CUDA:
        yield content
        return
    with tempfile.TemporaryDirectory() as folder:
        _run(tool("cuobjdump"), "-xelf", arch, str(path.resolve()), cwd=folder)
        for found in sorted(Path(folder).glob(f"*.{arch}.cubin")):
            yield found.read_bytes()


def _run(*command: object, cwd: str | None = None) -> str:
    done = subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{command[0]} failed: {done.stderr[-500:]}")
    return done.stdout


@dataclass(frozen=True)
class Kernel:
    """What the object file says about a kernel; `functions` disassembles it. Sizes in bytes."""

    name: str
    registers: int
    stack: int  # with the functions that it calls
    shared: int  # static, with the 1,024 bytes that CUDA takes from every block
    max_threads: int  # launch bounds; 1024 without
    size: int
    symbol: int
    cubin: bytes = field(repr=False)

    @functools.cached_property
    def functions(self) -> list[sass.Function]:
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(self.cubin)
            file.flush()
            text = _run(tool("nvdisasm"), "-c", "-fun", self.symbol, file.name)
        return sass.parse(text)


def kernels(cubin: bytes) -> list[Kernel]:
    """The kernels of a CUDA object, in the order of their names."""
    sections = _sections(cubin)
    names = [_name(cubin, sections, section) for section in sections]
    symbols = next(section for section in sections if section.kind == 2)
    strings = sections[symbols.link]
    functions: dict[str, int] = {}
    for number in range(symbols.size // 24):
        name, info = struct.unpack_from("<IB", cubin, symbols.offset + 24 * number)
        if info & 15 == 2:
            functions[_string(cubin, strings.offset + name)] = number
    values: dict[tuple[int, int], int] = {}
    for name_, section in zip(names, sections, strict=True):
        if name_ == ".nv.info":
            for attribute, data in _attributes(cubin[section.offset : section.offset + section.size]):
                if len(data) == 8:
                    symbol, value = struct.unpack("<II", data)
                    values[symbol, attribute] = value
    found = []
    for name_, section in zip(names, sections, strict=True):
        if not name_.startswith(".text."):
            continue
        kernel = name_.removeprefix(".text.")
        symbol = functions[kernel]
        threads, shared = 1024, 1024
        for other, its in zip(names, sections, strict=True):
            if other == f".nv.info.{kernel}":
                for attribute, data in _attributes(cubin[its.offset : its.offset + its.size]):
                    if attribute in (0x05, 0x10):  # maxntid, reqntid
                        x, y, z = struct.unpack("<III", data)
                        threads = x * y * z
            elif other == f".nv.shared.{kernel}":
                shared = its.size
        registers, stack = values[symbol, 0x2F], values.get((symbol, 0x12), 0)
        found.append(Kernel(kernel, registers, stack, shared, threads, section.size, symbol, cubin))
    return sorted(found, key=lambda kernel: kernel.name)


@dataclass(frozen=True)
class _Section:
    name: int
    kind: int
    offset: int
    size: int
    link: int


def _sections(elf: bytes) -> list[_Section]:
    at, count = struct.unpack_from("<Q", elf, 0x28)[0], struct.unpack_from("<H", elf, 0x3C)[0]
    found = []
    for number in range(count):
        name, kind, _, _, offset, size, link = struct.unpack_from("<IIQQQQI", elf, at + 64 * number)
        found.append(_Section(name, kind, offset, size, link))
    return found


def _name(elf: bytes, sections: list[_Section], section: _Section) -> str:
    return _string(elf, sections[struct.unpack_from("<H", elf, 0x3E)[0]].offset + section.name)


def _string(elf: bytes, at: int) -> str:
    return elf[at : elf.index(b"\0", at)].decode()


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Pairs of number and value of a .nv.info section."""
    at = 0
    while at + 4 <= len(data):
        form, attribute, size = struct.unpack_from("<BBH", data, at)
        at += 4
        if form == 4:
            yield attribute, data[at : at + size]
            at += size
